"""Several variants of one drafter in a run: their names, their files, and what is left out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless.bench.rows import method_name, parse_method, read_rows, read_sessions
from draftless.bench.runner import Run
from draftless.bench.variants import file_digests
from draftless.cli.bench_methods import read_mixes, read_variants
from draftless.drafters.anchor_store import AnchorStore
from draftless.errors import ConfigError
from draftless.skip_set import SkipSet, SkipSetting
from support.bench import QUESTIONS, bench_model, carry_out, fresh_model, small_plan, watched

ROOT = Path(__file__).parents[2]
ALL = SkipSet((0, 1), (0, 1))


def write_skip(file: Path, skip_set: SkipSet, threshold: float = 0.0) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    setting = SkipSetting(skip_set, threshold, 4).to_dict()
    file.write_text(json.dumps({"format_version": 1, "setting": setting}))
    return str(file)


def write_store(folder: Path) -> str:
    setting = SkipSetting(SkipSet((1,), ()), 0.0, 3)
    target = bench_model().target
    hidden = target.config.hidden_size
    AnchorStore(
        vectors=torch.nn.functional.normalize(torch.ones(2, hidden), dim=1),
        labels=("cats", "dogs"),
        settings={"cats": setting, "dogs": setting},
        general=setting,
        max_distance=2.0,
        kind="samples",
        model_fingerprint=target.fingerprint(),
    ).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("sets/mixed.json", "mixed"),
        ("/a/b/code/skip.json", "code"),
        ("skip.json", "skip"),
        ("../skip.json", "skip"),
        ("stores/five", "five"),
        ("stores/five/", "five"),
        ("mixed", "mixed"),
        (".", "."),
        (4, "4"),
        (0.25, "0.25"),
        (None, "None"),
    ],
)
def test_a_path_in_a_name_is_short(value: Any, name: str) -> None:
    told = method_name("layer-skip", {"skip_set": value, "depth": 3})
    assert told == f"layer-skip [skip_set={name}, depth=3]"
    drafter, options = parse_method(told)
    assert method_name(drafter, options) == told


def test_paths_are_swept() -> None:
    found = read_variants(
        ["layer-skip.depth=6"], ["layer-skip.skip_set=../a/mixed.json,b/code.json,c..d/x.json"]
    )
    assert [options["skip_set"] for _, options in found] == [
        "../a/mixed.json", "b/code.json", "c..d/x.json"
    ]  # fmt: skip
    assert {options["depth"] for _, options in found} == {6}


def test_mix_ratios_are_read() -> None:
    assert read_mixes(["0,0.5", "1", "0"]) == (0.0, 0.5, 1.0)
    assert read_mixes(None) == ()
    with pytest.raises(ConfigError, match="'often' is not a number"):
        read_mixes(["often"])


def test_several_skip_sets_and_a_store_run_side_by_side(tmp_path: Path) -> None:
    files = [write_skip(tmp_path / "none" / "skip.json", SkipSet())]
    files.append(write_skip(tmp_path / "everything.json", ALL))
    variants = [("layer-skip", {"skip_set": file}) for file in files]
    variants.append(("knn-ssd", {"store": write_store(tmp_path / "pets")}))
    plan = small_plan(drafters=("none",), variants=tuple(variants), mixes=(0.0, 1.0))
    rows = carry_out(plan, tmp_path / "run")
    assert [row.error for row in rows] == [None] * 2 * 3 * 4
    assert [case.method for case in plan.methods] == [
        "none", "layer-skip [skip_set=none]", "layer-skip [skip_set=everything]", "knn-ssd [store=pets]"
    ]  # fmt: skip
    turns = {row.case.method: row.turns[0] for row in rows if row.question_id == "a"}
    exact = turns["layer-skip [skip_set=none]"]
    assert sum(exact.step_tokens) - exact.num_steps == sum(exact.step_drafted)  # all were accepted
    assert exact.num_draft_passes >= sum(exact.step_drafted) > 0
    assert exact.time_s["draft"] > 0
    assert turns["none"].num_draft_passes == 0
    routed = turns["knn-ssd [store=pets]"].sources
    assert {source for source in routed if source} <= {"skip cats"}
    (session,) = read_sessions(tmp_path / "run")
    assert session["labels"] == {"knn-ssd [store=pets]": ["cats", "dogs"]}
    assert read_rows(tmp_path / "run") == rows


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [write_skip(tmp_path / place / "code.json", SkipSet()) for place in ("a", "b")]
    variants = tuple(("layer-skip", {"skip_set": file}) for file in files)
    with pytest.raises(ConfigError, match=r"two methods would be called .*skip_set=code"):
        small_plan(variants=variants)


def test_a_changed_file_is_not_mixed_into_its_rows(tmp_path: Path) -> None:
    def plan(*places: str) -> Any:
        variants = tuple(("layer-skip", {"skip_set": str(tmp_path / one)}) for one in places)
        return watched(small_plan(drafters=("none",), variants=variants, limit=1))[0]

    write_skip(tmp_path / "code.json", SkipSet((1,)))
    write_skip(tmp_path / "sql.json", SkipSet((1,)))
    run = tmp_path / "run"
    carry_out(plan("code.json"), run)
    carry_out(plan("sql.json"), run, is_resumed=True)  # another variant only adds rows
    Run(plan("code.json", "sql.json"), run, is_resumed=True)
    write_skip(tmp_path / "code.json", SkipSet((0,)))
    with pytest.raises(ConfigError, match="other contents"):
        Run(plan("code.json"), run, is_resumed=True)


def test_a_store_is_told_by_all_its_files(tmp_path: Path) -> None:
    variants = (("knn-ssd", {"store": write_store(tmp_path / "five")}), ("sdsat", {"k": 3}))
    before = file_digests(variants)
    assert list(before) == ["knn-ssd [store=five]"]
    file = tmp_path / "five" / "anchors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    assert file_digests(variants) != before


def test_a_variant_with_its_own_set_runs_where_the_checkpoint_has_none() -> None:
    untrained = fresh_model(adaptive_ids=())
    plan = small_plan(untrained, variants=(("layer-skip", {"skip_set": ALL.to_dict()}),))
    assert "layer-skip" in plan.left_out  # without options
    assert any(case.method.startswith("layer-skip [") for case in plan.methods)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("skip", "| method | tokens per step | acceptance rate | drafts per step |"),
        ("streams", "fall from mix 0 to 1 [95 %] |"),
        ("routes", "| cats | dogs | general | unknown | right |"),
    ],
)
def test_the_tables_of_the_pages(tmp_path: Path, kind: str, expected: str) -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    variants = (("knn-ssd", {"store": write_store(tmp_path / "pets")}),)
    plan = small_plan(
        drafters=("none",), variants=variants, mixes=(0.0, 1.0), questions=QUESTIONS[:1]
    )
    carry_out(plan, tmp_path / "run")
    text = f"<!-- benchmark: {kind} run -->\nold\n<!-- /benchmark -->"
    new = pages.rendered(text, tmp_path)
    assert expected in new
    assert "`knn-ssd [store=pets]`" in new or "| knn-ssd [store=pets] |" in new
    assert "old" not in new
    assert pages.rendered(new, tmp_path) == new
