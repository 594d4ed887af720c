"""Broken verifiers, masks, positions, caches (peers.md 3.4): a test that lets one live is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from draftless.engine import loop
from draftless.engine import masks as masks_module
from draftless.engine.cache import KVCache
from draftless.engine.position_noise import PositionNoise
from draftless.engine.sampling import TokenSampler
from draftless.engine.target import TargetModel
from draftless.engine.verify import walk
from draftless.layout import TreeLayout
from draftless.noise import KeyedNoise
from draftless.types import DraftTree, Verdict
from support.nucleus import nucleus_of_sdsat

Plant = Callable[[pytest.MonkeyPatch, TargetModel], None]
Draw = Callable[[int, Sequence[int]], int]

MUTANTS: dict[str, Plant] = {}
WINDOW_MUTANTS: dict[str, Plant] = {}


def mutant(plant: Plant) -> Plant:
    MUTANTS[plant.__name__] = plant
    return plant


def window_mutant(plant: Plant) -> Plant:
    WINDOW_MUTANTS[plant.__name__] = plant
    return plant


# --- verifiers ---------------------------------------------------------------------------------


def _replace_walk(patch: pytest.MonkeyPatch, broken: Callable[..., Verdict]) -> None:
    patch.setattr(loop, "walk", broken)


@mutant
def redraw_after_mismatch(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Where no child carries the draw, another draw is emitted (REST, SDSAT and Medusa do this)."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        def twice(node: int, path_ids: Sequence[int]) -> int:
            token_id = draw(node, path_ids)
            if tree.layout.children[node] and tree.child_carrying(node, token_id) is None:
                return _other_draw(draw, 1)(node, path_ids)
            return token_id

        return walk(tree, twice, stop)

    _replace_walk(patch, broken)


@mutant
def one_draw_per_child(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Each child gets a chance of its own: the first of several draws that is carried wins."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        def several(node: int, path_ids: Sequence[int]) -> int:
            num_draws = 1 + len(tree.layout.children[node])
            draws = [_other_draw(draw, sample)(node, path_ids) for sample in range(num_draws)]
            return next((t for t in draws if tree.child_carrying(node, t) is not None), draws[0])

        return walk(tree, several, stop)

    _replace_walk(patch, broken)


@mutant
def every_path_drawn_anew(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The nucleus rule of SDSAT's reference; greedy, it is right."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        new = count()
        return nucleus_of_sdsat(tree, lambda *at: _other_draw(draw, next(new))(*at), stop)

    _replace_walk(patch, broken)


def _other_draw(draw: Draw, sample: int) -> Draw:
    """The same draw with the noise of another sample, independent of the keyed one."""
    sampler: TokenSampler = draw.__self__  # type: ignore[attr-defined]
    row = sampler._row
    assert row.params.seed is not None
    keyed = KeyedNoise(row.params.seed, row.params.sample_index + sample)

    def other(node: int, path_ids: Sequence[int]) -> int:
        logits, noise = sampler._logits, row.noise
        row.noise = noise and PositionNoise(keyed, logits.shape[1], logits.device)
        try:
            return draw(node, path_ids)
        finally:
            row.noise = noise

    return other


@mutant
def bonus_from_the_parents_row(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """At a leaf the token is drawn from its parent's logits."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        def above(node: int, path_ids: Sequence[int]) -> int:
            is_leaf = node and not tree.layout.children[node]
            return draw(tree.parents[node] if is_leaf else node, path_ids)

        return walk(tree, above, stop)

    _replace_walk(patch, broken)


@mutant
def eos_ignored_inside_the_tree(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Only the last token of a step is tested for a stop (MSN's reference, bugs 2 and 3)."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        verdict = walk(tree, draw, lambda _: None)
        return replace(verdict, finish_reason=[stop(t) for t in verdict.token_ids][-1])

    _replace_walk(patch, broken)


@mutant
def first_child_always_accepted(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The draw is not compared with the child's token."""

    def follow(self: DraftTree, node: int, _: int) -> int | None:
        return next(iter(self.layout.children[node]), None)

    patch.setattr(DraftTree, "child_carrying", follow)


@mutant
def accepted_draft_beside_the_draw(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The walk goes to the sibling before the one that carries the draw."""
    original = DraftTree.child_carrying

    def beside(self: DraftTree, node: int, token_id: int) -> int | None:
        child = original(self, node, token_id)
        return None if child is None else max(self.layout.children[node][0], child - 1)

    patch.setattr(DraftTree, "child_carrying", beside)


@mutant
def probe_accepted(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Where no draft carries the draw, the walk goes on under a probe, which saw another token."""
    original = DraftTree.child_carrying

    def or_a_probe(self: DraftTree, node: int, token_id: int) -> int | None:
        probes = [c for c in self.layout.children[node] if self.is_probe and self.is_probe[c]]
        return original(self, node, token_id) or next(iter(probes), None)

    patch.setattr(DraftTree, "child_carrying", or_a_probe)


@mutant
def root_counted_twice(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """A path is padded with the root, so a draw that repeats the root is taken (bug 1)."""

    def broken(tree: DraftTree, draw: Draw, stop: Callable[[int], Any]) -> Verdict:
        verdict = walk(tree, draw, stop)
        if verdict.token_ids[-1] != tree.token_ids[0] or verdict.finish_reason:
            return verdict
        again = draw(0, verdict.token_ids)
        reason = stop(again)
        return Verdict((*verdict.path, 0), (*verdict.token_ids, again), "bonus", reason)

    _replace_walk(patch, broken)


# --- processors and noise ----------------------------------------------------------------------


def _around_draw(patch: pytest.MonkeyPatch, change: Callable[..., int]) -> None:
    original = TokenSampler.draw
    patch.setattr(TokenSampler, "draw", lambda self, node, path: change(original, self, node, path))


@mutant
def processors_miss_the_path(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Processors see the committed prefix without what the walk accepted since."""

    def blind(original: Any, self: TokenSampler, node: int, path: Sequence[int]) -> int:
        processors = self._processors
        assert processors is not None
        known = len(self._row.token_ids)
        self._processors = lambda ids, scores: processors(ids[:, :known], scores)
        try:
            return original(self, node, path)
        finally:
            self._processors = processors

    _around_draw(patch, blind)


@mutant
def noise_of_the_roots_position(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """All draws of a walk use the noise of its first position."""

    def stuck(original: Any, self: TokenSampler, node: int, path: Sequence[int]) -> int:
        row, noise = self._row, self._row.noise
        assert noise is not None and row.params.seed is not None
        keyed = KeyedNoise(row.params.seed)
        object.__setattr__(keyed, "base", keyed.base - len(path))  # as if the walk were there yet
        row.noise = PositionNoise(keyed, self._logits.shape[1], self._logits.device)
        try:
            return original(self, node, path)
        finally:
            row.noise = noise

    _around_draw(patch, stuck)


@mutant
def no_warping_of_the_bonus(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Tokens below the root are drawn without processors (SWIFT's bonus token)."""

    def raw(original: Any, self: TokenSampler, node: int, path: Sequence[int]) -> int:
        processors = self._processors
        if node:
            self._processors = None
        try:
            return original(self, node, path)
        finally:
            self._processors = processors

    _around_draw(patch, raw)


# --- masks, positions, lengths -----------------------------------------------------------------


def _mutate_layouts(patch: pytest.MonkeyPatch, mutate: Callable[[TreeLayout], TreeLayout]) -> None:
    """Change the layouts of trees, not those of prefill."""
    original = TargetModel.forward

    def forward(self: TargetModel, cache: KVCache, ids: Any, layouts: Any, **kw: Any) -> Any:
        if not kw:
            layouts = [mutate(layout) for layout in layouts]
        return original(self, cache, ids, layouts, **kw)

    patch.setattr(TargetModel, "forward", forward)


@mutant
def siblings_visible(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """A node sees the siblings before it."""

    def mutate(layout: TreeLayout) -> TreeLayout:
        mask = layout.mask.clone()
        for children in layout.children:
            for later, node in enumerate(children):
                mask[node, list(children[:later])] = True
        return replace(layout, mask=mask)

    _mutate_layouts(patch, mutate)


@mutant
def whole_tree_visible(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The ordinary causal mask over the flattened tree."""
    _mutate_layouts(patch, lambda lay: replace(lay, mask=torch.ones_like(lay.mask).tril()))


@mutant
def ancestors_invisible(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """A node sees the prefix, the root and itself only."""

    def mutate(layout: TreeLayout) -> TreeLayout:
        mask = torch.eye(layout.num_nodes, dtype=torch.bool)
        mask[:, 0] = True
        return replace(layout, mask=mask)

    _mutate_layouts(patch, mutate)


@mutant
def position_off_by_one(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Drafts stand one place too far right."""

    def mutate(layout: TreeLayout) -> TreeLayout:
        return replace(layout, depths=tuple(depth + (depth > 0) for depth in layout.depths))

    _mutate_layouts(patch, mutate)


@mutant
def position_is_the_slot(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Positions count nodes instead of depth."""
    _mutate_layouts(patch, lambda lay: replace(lay, depths=tuple(range(lay.num_nodes))))


@mutant
def length_of_another_row(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Rows of a ragged batch share the longest one's length."""
    original = TargetModel.forward

    def forward(self: TargetModel, cache: KVCache, ids: Any, layouts: Any, **kw: Any) -> Any:
        lengths = cache.lengths
        if not kw:
            cache.lengths = [max(lengths)] * len(lengths)
        try:
            return original(self, cache, ids, layouts, **kw)
        finally:
            cache.lengths = lengths

    patch.setattr(TargetModel, "forward", forward)


@window_mutant
def window_not_applied(patch: pytest.MonkeyPatch, target: TargetModel) -> None:
    """Every layer sees the whole prefix."""
    patch.setattr(target._masks, "_windows", dict.fromkeys(target._masks._windows))


@window_mutant
def window_off_by_one(patch: pytest.MonkeyPatch, target: TargetModel) -> None:
    """The window is one token too wide."""
    wider = {kind: size and size + 1 for kind, size in target._masks._windows.items()}
    patch.setattr(target._masks, "_windows", wider)


@window_mutant
def window_counts_slots(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The window is measured in cache slots, where siblings stand between a node and its parent."""
    original = masks_module._within

    def within(window: int, lengths: Any, layouts: Any, visible: Any) -> Any:
        slots = [replace(lay, depth_tensor=torch.arange(lay.num_nodes)) for lay in layouts]
        return original(window, lengths, slots, visible)

    patch.setattr(masks_module, "_within", within)


# --- the cache ---------------------------------------------------------------------------------


@mutant
def kv_not_gathered(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The first slots of the tree stay, whatever the path was."""
    original = KVCache.commit
    patch.setattr(KVCache, "commit", lambda self, row, path: original(self, row, range(len(path))))


@mutant
def kv_gather_off_by_one(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """Accepted nodes are gathered from the slot before their own."""
    original = KVCache.commit

    def shifted(self: KVCache, row: int, path: Sequence[int]) -> None:
        original(self, row, [max(0, node - 1) for node in path])

    patch.setattr(KVCache, "commit", shifted)


def _shift_length(patch: pytest.MonkeyPatch, shift: int) -> None:
    original = KVCache.commit

    def shifted(self: KVCache, row: int, path: Sequence[int]) -> None:
        original(self, row, path)
        if len(path) > 1:
            self.lengths[row] += shift

    patch.setattr(KVCache, "commit", shifted)


@mutant
def length_one_too_long(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """A rejected node stays in the cache."""
    _shift_length(patch, 1)


@mutant
def length_one_too_short(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """The last accepted node is lost."""
    _shift_length(patch, -1)


@mutant
def dropped_row_takes_another_place(patch: pytest.MonkeyPatch, _: TargetModel) -> None:
    """When a row ends, the last row's length moves into its place but its memory does not."""

    def drop(self: KVCache, row: int) -> None:
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()

    patch.setattr(KVCache, "drop", drop)
