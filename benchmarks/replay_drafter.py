"""Steps recorded from a real run, and a drafter that plays them on any model.

A recorded step is the shape of its tree and the path that the walk took. Played on another model,
the nodes of that path carry the tokens that this model will say (known from a plain run) and no
other node does: acceptance is the recorded one, and everything else is the other model's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftless.engine.loop import decode, make_request
from draftless.errors import ArtifactError
from draftless.jsonl import write_json
from draftless.loops import looping_tokens
from draftless.model import Draftless
from draftless.params import SamplingParams
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

STEPS_FILE = Path(__file__).parent / "replay_steps.json"


@dataclass(frozen=True)
class Step:
    """One recorded step: the tree's parents, its probes, and the accepted nodes from the root on."""

    parents: tuple[int, ...]
    probes: frozenset[int]
    path: tuple[int, ...]


def record_steps(
    model: Draftless, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[Step]:
    """Decode each prompt and keep the steps, but for the last one, which a stop cut short.

    Answers that end in a loop are left out: they are too easy to draft.
    """
    steps = []
    for prompt_ids in prompts:
        request = make_request(model.target, 0, prompt_ids, params, None, model.eos_token_ids)
        taken = []
        for _, record in decode(model.target, model.drafter, [request]):
            tree, verdict = record.tree, record.verdict
            if verdict.finish_reason is None:
                probes = frozenset(n for n, is_probe in enumerate(tree.is_probe) if is_probe)
                taken.append(Step(tree.parents, probes, verdict.path))
        if not looping_tokens(request.row.token_ids[len(prompt_ids) :]):
            steps += taken
    return steps


def write_steps(path: Path, steps: dict[str, list[Step]], facts: dict[str, Any]) -> None:
    """Write recorded steps by sampling; a shape that comes again is written once."""
    recorded = {}
    for name, taken in steps.items():
        shapes = list(dict.fromkeys((step.parents, step.probes) for step in taken))
        place = {shape: index for index, shape in enumerate(shapes)}
        recorded[name] = {
            "shapes": [
                _joined(parents) + "|" + _joined(sorted(probes)) for parents, probes in shapes
            ],
            "steps": [f"{place[step.parents, step.probes]}|{_joined(step.path)}" for step in taken],
        }
    write_json(path, {**facts, "samplings": recorded})


def read_steps(path: Path) -> tuple[dict[str, list[Step]], dict[str, Any]]:
    """What `write_steps` wrote: the steps by sampling, and the facts.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        steps = {}
        for name, recorded in facts.pop("samplings").items():
            shapes = [[_numbers(part) for part in one.split("|")] for one in recorded["shapes"]]
            pairs = [one.split("|") for one in recorded["steps"]]
            steps[name] = [
                Step(shapes[int(shape)][0], frozenset(shapes[int(shape)][1]), _numbers(nodes))
                for shape, nodes in pairs
            ]
    except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ArtifactError(f"cannot read recorded steps from {path}: {error!r}") from error
    return steps, facts


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


class ReplayDrafter:
    """Plays recorded steps on a model whose plain text is known.

    Args:
        steps: what every request goes through, over and over again.
        text: the plain new ids of the one request that will be decoded, longer than it will be by
            the longest path.
        vocab_size: wrong tokens are below it.
    """

    def __init__(self, steps: Sequence[Step], text: Sequence[int], vocab_size: int) -> None:
        self._steps = steps
        self._text = text
        self._vocab_size = vocab_size
        self._num_done = 0

    def reset(self, row: Row) -> None:
        del row
        self._num_done = 0

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        del passes
        (row,) = rows
        step = self._steps[self._num_done % len(self._steps)]
        self._num_done += 1
        start = len(row.token_ids) - row.prompt_len
        coming = self._text[start : start + len(step.path)]
        # Further from the truth by one per node: no sibling is equal, and none is right.
        base = coming[0]
        wrong = set(coming)
        ids = []
        for _ in step.parents:
            base = (base + 1) % self._vocab_size
            while base in wrong:
                base = (base + 1) % self._vocab_size
            ids.append(base)
        ids[0] = row.token_ids[-1]
        for node, token_id in zip(step.path[1:], coming, strict=False):
            ids[node] = token_id
        flags = tuple(node in step.probes for node in range(len(ids))) if step.probes else ()
        return [DraftTree(tuple(ids), step.parents, flags)]

    def observe(self, records: Sequence[StepRecord]) -> None:
        """Nothing to learn."""
