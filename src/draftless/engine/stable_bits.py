"""Whether passes are batch-invariant on a model and a machine, shown by trying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from draftless.engine.cache import KVCache
from draftless.engine.self_test import tried_tokens
from draftless.errors import CapabilityError
from draftless.layout import tree_layout
from draftless.skip_set import SkipSet

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel

_PATH = 6
_TREES = (6, 16, 48)  # nodes
_MOST_CACHED, _FEWER = 309, 9  # tokens, as far as the context goes
_KEYS = 0.1


def check_stable_bits(target: TargetModel, skip_set: SkipSet | None = None) -> None:
    """A text fed token by token and as the last leaves of trees must give the same bits.

    Behind many cached tokens: kernels may take another way where there is more to read.

    Args:
        target: of which model.
        skip_set: layers that are left out.

    Raises:
        CapabilityError: it does not: products or sums depend on what else is in a pass.
    """
    tokens = tried_tokens(target.vocab_size, _PATH)
    most = min(_MOST_CACHED, (target.max_positions or 10**9) - _PATH)
    own, other = [max(0, most - _FEWER)], max(0, most)
    cache = _with_noise(target, own, other, len(tokens))
    plain = []
    for token_id in tokens:
        found = target.forward(cache, [[token_id]], [tree_layout((-1,))], skip_set=skip_set)
        plain.append(found[0][0])
        cache.commit(0, [0])
    for num_nodes in _TREES:
        num_siblings = (num_nodes - 1) // (_PATH - 1) - 1
        ids, parents, path = [tokens[0]], [-1], [0]
        for token_id in tokens[1:]:
            above = path[-1]
            ids += [0] * num_siblings
            parents += [above] * num_siblings
            path.append(len(ids))
            ids.append(token_id)
            parents.append(above)
        # Alone, and beside a longer row.
        for lengths in (own, [*own, other]):
            cache = _with_noise(target, lengths, other, len(ids))
            layouts = [tree_layout(tuple(parents)), tree_layout((-1,))][: len(lengths)]
            both = [ids, [0]][: len(lengths)]
            logits = target.forward(cache, both, layouts, skip_set=skip_set)[0]
            if not torch.equal(logits[path], torch.stack(plain)):
                raise CapabilityError(
                    f"{type(target.model).__name__} in {target.model.dtype} gives other bits in a pass of "
                    f"{len(ids)} tokens than in one of one"
                )


def _with_noise(target: TargetModel, lengths: Sequence[int], most: int, num_more: int) -> KVCache:
    """A cache whose rows hold the same numbers, `most` of them at most: small keys, so that every token counts."""
    shape = target.cache_shape
    sizes = (shape.num_layers, 2, shape.num_kv_heads, most, shape.head_dim)
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    noise[:, 0] *= _KEYS
    cache = target.make_cache(len(lengths), most + num_more)
    for row, length in enumerate(lengths):
        cache.data[:, :, row, :, :most] = noise.to(shape.device, shape.dtype)
        cache.commit(row, range(length))
    return cache
