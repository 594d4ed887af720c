"""What rows of logits say, in few tokens: the likeliest ones, and their shares as cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from draftless.drafters.fusion import Found, share_cells

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_SHARED = 8  # tokens that share a row
_INTEGERS = {2: torch.int16, 4: torch.int32}  # by the size of a logit


def shares_near_top(
    ids: Ids,  # [m, n], the likeliest first
    scores: Scores,  # [m, n], their logits
    least: float,
) -> list[Found]:
    """Per row the best tokens with the cells of their shares among the best; none below `least`."""
    weights = np.exp(scores - scores[:, :1])
    shares = weights / weights.sum(axis=1, keepdims=True)
    cells = share_cells(shares)
    counts = (shares >= least).sum(axis=1).tolist()
    return [
        list(zip(row[:count], of_row[:count], strict=True))
        for row, of_row, count in zip(ids.tolist(), cells.tolist(), counts, strict=True)
    ]


def likeliest(
    logits: torch.Tensor,  # [m, V]
    count: int = _SHARED,
) -> tuple[Ids, Scores]:  # ids and logits, [m, min(count, V)] each, the largest first
    """`topk`; on a CPU several times faster than torch's for few, wide rows.

    Floats that are not negative are ordered like the integers with the same bits, and every negative
    one is below them. So the columns are folded onto each other as integers, keeping maxima, until
    few are left: the `count`-th largest of those is at most the `count`-th largest logit, and hardly
    more than `count` logits reach it. If it is negative, the bits of negative logits are turned first.
    """
    count = min(count, logits.shape[1])
    integers = _INTEGERS.get(logits.element_size())
    if integers is not None and logits.device.type == "cpu":
        bits = logits.view(integers).numpy()
        least = _reached_by(bits, count)
        if least.min() < 0:
            bits = _turned(bits)
            least = _reached_by(bits, count)
            ids, found = _at_least(bits, least, count)
            found = _turned(found)
        else:
            ids, found = _at_least(bits, least, count)
        return ids, torch.from_numpy(found).view(logits.dtype).float().numpy()
    top = logits.float().topk(count)
    return top.indices.cpu().numpy(), top.values.cpu().numpy()


def _reached_by(bits: npt.NDArray[np.signedinteger], count: int) -> npt.NDArray[np.signedinteger]:
    """Per row a bound that at least `count` columns reach, and few more; `[m]`."""
    folded = bits
    while folded.shape[1] >= 8 * count:
        half = folded.shape[1] // 2
        odd = folded[:, 2 * half :]
        folded = np.maximum(folded[:, :half], folded[:, half : 2 * half])
        if odd.shape[1]:
            np.maximum(folded[:, :1], odd, out=folded[:, :1])
    place = folded.shape[1] - count
    return np.partition(folded, place, axis=1)[:, place]


def _at_least(
    bits: npt.NDArray[np.signedinteger],  # [m, V]
    least: npt.NDArray[np.signedinteger],  # [m]
    count: int,
) -> tuple[Ids, npt.NDArray[np.signedinteger]]:  # ids and bits, [m, count] each
    """The `count` best of the columns that reach `least`."""
    flat = np.flatnonzero(bits >= least[:, None])
    rows = flat // bits.shape[1]
    found = bits.reshape(-1)[flat] if bits.flags.c_contiguous else bits[rows, flat % bits.shape[1]]
    # One sort for all rows: by row, then the largest first; stable, so of equals the lowest id.
    order = np.argsort((rows << 33) - found, kind="stable")
    starts = np.searchsorted(rows, np.arange(len(bits)))
    best = order[starts[:, None] + np.arange(count)]
    ids = flat[best] - np.arange(len(bits))[:, None] * bits.shape[1]
    return ids, found[best]


def _turned(bits: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
    """Bits of floats as integers in the order of the floats, and back."""
    size = 8 * bits.itemsize
    return bits ^ ((bits >> (size - 1)) & ((1 << (size - 1)) - 1))
