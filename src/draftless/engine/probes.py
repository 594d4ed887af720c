"""What is tried on a model when it is loaded: a few tokens through trees, against what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from draftless.engine.compiled.strict import WIDTH
from draftless.errors import CapabilityError
from draftless.layout import TreeLayout, chain_parents, tree_layout

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel

_NEAR = 0.2  # standard deviations of the logits: rounding stays below, a wrong mask goes far beyond
_STRICT_TOKENS = 6
_STRICT_WIDTHS = (1, 2, 4, 8)  # times WIDTH


def three_tokens(vocab_size: int) -> list[int]:
    """Ids that every model has."""
    return [1 % vocab_size, 2 % vocab_size, 3 % vocab_size]


def check_masks_and_positions(target: TargetModel, stock_logits: torch.Tensor) -> None:
    """Neither our attention nor a sibling and its positions may change a path's logits.

    Attention with sinks or other extras fails the first (GPT-OSS), ALiBi models the second.

    Args:
        target: the model in question.
        stock_logits: `[3, V]` float32, what the model said to `three_tokens` before it was touched.

    Raises:
        CapabilityError: they do.
    """
    name = type(target.model).__name__
    tokens = three_tokens(target.vocab_size)
    chain = _logits(target, tokens, tree_layout(chain_parents(3)))
    near = _NEAR * chain[-1].std()
    difference = (chain - stock_logits).abs().max()
    if not difference <= near:
        raise CapabilityError(
            f"{name} computes something else than {target.model.config._attn_implementation!r} "
            f"attention does (logits differ by {float(difference):.3g}); try attention='eager'"
        )
    difference = (_logits(target, tokens[:1], tree_layout((-1,)))[0] - chain[0]).abs().max()
    if not difference <= near:
        raise CapabilityError(
            f"{name} reads a token alone otherwise than before others (logits differ by "
            f"{float(difference):.3g}); drafts cannot be verified"
        )
    tree = _logits(target, [tokens[0], 0, *tokens[1:]], tree_layout((-1, 0, 0, 2)))
    difference = (tree[-1] - chain[-1]).abs().max()
    if not difference <= near:
        raise CapabilityError(
            f"{name} does not honour 4-D masks and position ids "
            f"(a sibling moves its logits by {float(difference):.3g}); trees cannot be verified"
        )


def _logits(target: TargetModel, token_ids: list[int], layout: TreeLayout) -> torch.Tensor:
    cache = target.make_cache(1, len(token_ids))
    return target.forward(cache, [token_ids], [layout])[0].float()


def has_stable_bits(target: TargetModel) -> bool:
    """Whether ordinary passes give a token the same bits in every tree and batch.

    They do where the products and the attention are our own (`native/`), which sum in one order.
    """
    try:
        check_strict(target)
    except CapabilityError:
        return False
    return True


def check_strict(target: TargetModel) -> None:
    """Tokens fed one after another and as the last leaves of trees must give the same bits.

    Raises:
        CapabilityError: they do not: the machine's matrix library adds up in another order for
            other widths or places.
    """
    tokens = [(7 * index + 1) % target.vocab_size for index in range(_STRICT_TOKENS)]
    cache = target.make_cache(1, WIDTH)
    plain = []
    for token_id in tokens:
        plain.append(target.forward(cache, [[token_id]], [tree_layout((-1,))])[0][0])
        cache.commit(0, [0])
    for times in _STRICT_WIDTHS:
        # Siblings before every node of the path: none stands where it does in plain decoding.
        num_siblings = (WIDTH * times - 1) // (_STRICT_TOKENS - 1) - 1
        token_ids, parents, path = [tokens[0]], [-1], [0]
        for token_id in tokens[1:]:
            above = path[-1]
            token_ids += [0] * num_siblings
            parents += [above] * num_siblings
            path.append(len(token_ids))
            token_ids.append(token_id)
            parents.append(above)
        # Beside a longer row.
        cache = target.make_cache(2, _STRICT_TOKENS + len(token_ids))
        cache.commit(1, range(_STRICT_TOKENS))
        layouts = [tree_layout(tuple(parents)), tree_layout((-1,))]
        logits = target.forward(cache, [token_ids, [0]], layouts)[0]
        if not torch.equal(logits[path], torch.stack(plain)):
            raise CapabilityError(
                f"strict is not possible for {type(target.model).__name__} on this machine: a pass "
                f"over {WIDTH * times} tokens rounds otherwise than one over {WIDTH}; leave strict out"
            )
