"""The walk, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from draftless.engine.verify import walk
from draftless.types import DraftTree, FinishReason, Verdict

# Under the root: 5 (wrong tail), probe 7, and 7 with a chain 8, 9.
TREE = DraftTree(
    token_ids=(4, 5, 8, 7, 7, 8, 9),
    parents=(-1, 0, 1, 0, 0, 4, 5),
    is_probe=(False, False, False, True, False, False, False),
)


def scripted(text: Sequence[int], tree: DraftTree = TREE) -> tuple[Verdict, list[tuple[int, int]]]:
    """Walk with the target's text given; also the nodes drawn at and how long the path was."""
    calls: list[tuple[int, int]] = []

    def draw(node: int, path_ids: Sequence[int]) -> int:
        assert list(path_ids) == list(text[: len(path_ids)])
        calls.append((node, len(path_ids)))
        return text[len(path_ids)]

    return walk(tree, draw, lambda _: None), calls


@pytest.mark.parametrize(
    ("text", "path", "kind"),
    [
        ((1,), (0,), "recovered"),
        ((7, 1), (0, 4), "recovered"),
        ((7, 8, 1), (0, 4, 5), "recovered"),
        ((7, 8, 9, 1), (0, 4, 5, 6), "bonus"),
        ((5, 8, 1), (0, 1, 2), "bonus"),
    ],
)
def test_the_walk_follows_the_draw(text: tuple[int, ...], path: tuple[int, ...], kind: str) -> None:
    verdict, calls = scripted(text)
    assert verdict == Verdict(path, text, kind)  # type: ignore[arg-type]
    assert calls == [(node, depth) for depth, node in enumerate(path)], "one draw per node"
    assert verdict.num_accepted_tokens == len(path) - 1


def test_a_root_alone_gives_one_token() -> None:
    assert scripted((3,), DraftTree.chain([4]))[0] == Verdict((0,), (3,), "bonus")


def test_a_leaf_with_probes_only_gives_a_bonus() -> None:
    tree = DraftTree((0, 1, 2), (-1, 0, 1), (False, False, True))
    assert scripted((1, 2), tree)[0] == Verdict((0, 1), (1, 2), "bonus")


def test_a_draw_that_repeats_the_root_is_not_one_more_draft() -> None:
    """MSN's reference pads short paths with the root and takes it for an accepted token (bug 1)."""
    assert scripted((7, 8, 9, 4))[0].path == (0, 4, 5, 6)
    assert scripted((4,))[0].path == (0,)


def stop_at(token_id: int) -> Callable[[int], FinishReason | None]:
    return lambda token: "stop" if token == token_id else None


@pytest.mark.parametrize("text", [(7, 8, 9, 1), (7, 8, 3)])
def test_a_stop_ends_the_walk_with_its_token(text: tuple[int, ...]) -> None:
    """Although a child carries it (bug 2), and also where none does (bug 3)."""
    end = 8 if text[-1] == 1 else 3
    verdict = walk(TREE, lambda _, path: text[len(path)], stop_at(end))
    wanted = text[: text.index(end) + 1]
    assert verdict.token_ids == wanted
    assert verdict.path == (0, 4, 5)[: len(wanted)]
    assert (verdict.last_kind, verdict.finish_reason) == ("stopped", "stop")


def test_the_stop_hears_every_token_once_in_order() -> None:
    heard: list[int] = []
    walk(TREE, lambda _, path: (7, 8, 9, 1)[len(path)], heard.append)  # type: ignore[arg-type]
    assert heard == [7, 8, 9, 1]
