"""Recorded steps, played on models of random weights, at toy size."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import replay
import torch
from replay_drafter import (
    STEPS_FILE,
    ReplayDrafter,
    Step,
    read_steps,
    record_steps,
    write_steps,
)
from replay_models import SIZES, build_model

from draftless.drafters.registry import make_drafter
from draftless.engine.target import TargetModel
from draftless.errors import ArtifactError
from draftless.model import Draftless
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord

VOCAB = SIZES["toy"].vocab_size
STEPS = [
    Step((-1, 0, 0, 1, 2, 4), frozenset(), (0, 2, 4, 5)),  # the later sibling, to the end
    Step((-1, 0, 1, 2, 0), frozenset({4}), (0, 1)),  # a part, a probe beside it
    Step((-1, 0, 0, 1), frozenset(), (0,)),  # nothing
    Step((-1,), frozenset(), (0,)),  # no draft
    Step((-1, 0, 1), frozenset(), (0, 1, 2)),  # everything
]


@cache
def plain_model() -> Draftless:
    target = TargetModel(build_model(SIZES["toy"], "cpu", torch.float32))
    return Draftless(target, None, make_drafter("none"))


def text_of(tokens: int, **options: float) -> list[int]:
    params = SamplingParams(max_new_tokens=tokens, seed=1, **options)  # type: ignore[arg-type]
    return list(plain_model().generate([5, 6, 7], params).token_ids)


def test_the_next_token_is_certain_and_follows_from_the_last_one() -> None:
    """So another width, dtype or seed does not turn it round, and replayed text stays true."""
    text = text_of(60)
    followers: dict[int, int] = {}
    for token, successor in pairwise(text):
        assert followers.setdefault(token, successor) == successor
    assert len(followers) > 20, "no short circle"
    assert text_of(60, temperature=1.0) == text
    half = build_model(SIZES["toy"], "cpu", torch.bfloat16)
    model = Draftless(TargetModel(half), None, make_drafter("none"))
    ids = model.generate([5, 6, 7], SamplingParams(max_new_tokens=60)).token_ids
    successors = dict(pairwise(ids))
    best = half(torch.tensor([list(successors)])).logits[0].argmax(-1)
    assert best.tolist() == list(successors.values())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_is_what_was_recorded(temperature: float) -> None:
    text = text_of(44, temperature=temperature)
    model = plain_model().with_drafter(ReplayDrafter(STEPS, text, VOCAB))
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=1)
    chunks = list(model.stream([5, 6, 7], params))
    taken = [len(chunk.token_ids) for chunk in chunks[:-1]]  # the last one ends the text
    wanted = [len(step.path) for step in STEPS]
    assert taken == (wanted * 9)[: len(taken)] and len(taken) > 2 * len(STEPS)
    assert chunks[0].num_nodes == 6 and chunks[1].num_draft_tokens == 3
    assert [i for chunk in chunks for i in chunk.token_ids] == text[:40]


@pytest.mark.parametrize("step", STEPS)
def test_no_other_node_is_right(step: Step) -> None:
    """Even where the text counts up, as the wrong tokens do."""
    drafter = ReplayDrafter([step], [2, 3, 4, 5, 6], VOCAB)
    row = Row(0, [9, 1], SamplingParams(), None)
    (tree,) = drafter.propose([row], None)  # type: ignore[arg-type]
    coming = (2, 3, 4, 5, 6)[: len(step.path)]  # also what follows the path's end
    right = {node for node, token in enumerate(tree.token_ids) if token in coming}
    assert right == set(step.path[1:])
    assert [tree.token_ids[node] for node in step.path] == [1, 2, 3, 4, 5, 6][: len(step.path)]


def test_steps_are_recorded_as_they_were_taken(tmp_path: Path) -> None:
    """Recording a replay gives the same steps, and so does the file."""
    text = text_of(44)
    model = plain_model().with_drafter(ReplayDrafter(STEPS, text, VOCAB))
    params = SamplingParams(max_new_tokens=30)
    recorded = record_steps(model, [[5, 6, 7]], params)
    assert recorded[: len(STEPS)] == STEPS
    write_steps(tmp_path / "steps.json", {"greedy": recorded}, {"drafter": "replay"})
    steps, facts = read_steps(tmp_path / "steps.json")
    assert steps == {"greedy": recorded} and facts == {"drafter": "replay"}


def test_answers_that_loop_are_not_recorded() -> None:
    class Circle:
        """Drafts nothing; the model itself goes round because its successors do."""

        def reset(self, row: Row) -> None: ...
        def propose(self, rows: list[Row], _: object) -> list[DraftTree]:
            return [DraftTree.chain(row.token_ids[-1:]) for row in rows]

        def observe(self, records: list[StepRecord]) -> None: ...

    model = plain_model().with_drafter(Circle())  # type: ignore[arg-type]
    few, many = (
        SamplingParams(max_new_tokens=count, repetition_penalty=p)
        for count, p in ((9, 1), (40, 1e-9))
    )
    assert len(record_steps(model, [[5, 6, 7]], few)) == 8
    assert record_steps(model, [[5, 6, 7]], many) == [], "a token that is rewarded comes again"


def test_the_recorded_file_is_whole() -> None:
    recorded, facts = read_steps(STEPS_FILE)
    assert set(recorded) == {"greedy", "T=1"} and facts["drafter"]
    for steps in recorded.values():
        assert len(steps) > 100
        assert 1.3 < sum(len(step.path) for step in steps) / len(steps) < 4.0
        for step in steps:
            assert step.path[0] == 0 and not step.probes.intersection(step.path)
            assert all(step.parents[node] == above for above, node in pairwise(step.path))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(
        '{"samplings": {"greedy": {"shapes": [], "steps": ["3|0"]}}}'
    )
    with pytest.raises(ArtifactError, match="cannot read recorded steps from"):
        read_steps(tmp_path / "steps.json")


def test_steps_of_every_width_count() -> None:
    """A burst of other load does not; the median of all steps would know one width alone."""
    run = replay.Run(
        widths=[16, 16, 16, 4, 16, 16, 4, 4],
        wall_s=[4.0, 4.0, 4.0, 1.0, 99.0, 4.0, 1.0, 50.0],
        stages_s=[{"forward": 3.0}] * 8,
        tokens=[2] * 9,
    )
    assert run.token_s == pytest.approx((5 * 4.0 + 3 * 1.0) / 8 / 2)
    stages = run.stages_us()
    assert stages["forward"] == pytest.approx(3e6)
    assert stages["other"] == pytest.approx(1e6 * (5 * 1.0 + 3 * -2.0) / 8)


def test_the_whole_script(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "replay.json"
    replay.main(
        ["--sizes", "toy", "--dtype", "float32", "--tokens", "24", "--repeats", "1",
         "--samplings", "greedy", "T=1 top-p=0.9", "--output", str(output)]
    )  # fmt: skip
    result = json.loads(output.read_text())
    assert {"provenance", "steps", "tokens", "models"} <= set(result)
    (entry,) = result["models"]
    assert entry["model"] == "toy" and not entry["is_compiled"]
    assert set(entry["samplings"]) == {"greedy", "T=1 top-p=0.9"}
    for found in entry["samplings"].values():
        assert found["is_exact"] and found["acceptance_length"] > 1.2
        assert found["efficiency"] > 0 and set(found["curve_ms"]) >= {"1", "8", "64"}
        assert found["mean_width"] > 8
        assert set(found["tokens_per_s"]) == {"plain", "transformers", "replay"}
        stages = found["stages_us"]["replay"]
        assert set(stages) == {
            "propose",
            "draft",
            "forward",
            "verify",
            "commit",
            "observe",
            "other",
        }
        rest = sum(us for stage, us in stages.items() if stage != "forward")
        assert found["overhead"]["replay"] == pytest.approx(rest / sum(stages.values()), abs=1e-3)


def test_without_a_compiler_eager_passes_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison keeps what it has; who asks for compiled passes alone is told."""
    monkeypatch.setattr(replay, "TargetModel", lambda *args, **_: TargetModel(*args))
    output = tmp_path / "replay.json"
    command = ["--sizes", "toy", "--dtype", "float32", "--tokens", "8", "--repeats", "1"]
    command += ["--samplings", "greedy", "--output", str(output), "--compile"]
    replay.main([*command, "both"])
    assert [entry["is_compiled"] for entry in json.loads(output.read_text())["models"]] == [False]
    assert "eager passes only" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="use --compile no"):
        replay.main([*command, "yes"])
