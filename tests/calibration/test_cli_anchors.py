"""`draftless calibrate anchors`: what it writes, shows, resumes, installs and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from draftless import Draftless
from draftless.calibration import domain_settings, skip_search
from draftless.calibration.costs import CostTable
from draftless.calibration.rounds import MAX_SIBLINGS
from draftless.calibration.skip_search import search_skip_setting
from draftless.cli import app
from draftless.drafters.anchor_store import AnchorStore
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.manifest import read_manifest
from support.small_model import save_training_model

WORDS = {
    "animals": ["the cat", "and the dog", "sat on", "the mat", "the log"],
    "code": ["print(a[0])", "x = ", "[bold]", "a[0]", "print(x)"],
    "signs": ["äöü", "猫", "üü", "äß", "猫ö"],
}


@pytest.fixture(scope="module", autouse=True)
def fixed_costs() -> Iterator[None]:
    """Measuring passes is slow, and what ships would depend on the machine's load."""
    widths = tuple(1.0 + width / 10 for width in range(3 + MAX_SIBLINGS + 1))
    costs = CostTable(2, 8, widths, 0.1, 0.1, 0.1, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skip_search, "measure_costs", lambda *_: costs)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts of each of three domains."""
    folder = tmp_path_factory.mktemp("data")
    for name, words in WORDS.items():
        (folder / name).mkdir()
        lines = [
            json.dumps(
                {"prompt": " ".join(words[(n + k * k) % 5] for k in range(2 + n % 4)) + str(n)}
            )
            for n in range(12)
        ]
        (folder / name / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """A checkpoint, the store that was built for it and installed, and what was said."""
    checkpoint = save_training_model(tmp_path_factory.mktemp("model"))
    output = tmp_path_factory.mktemp("store") / "anchors"
    return checkpoint, output, build(checkpoint, data, output, "--unseen", "signs", "--install")


def build(model: Path, data: Path, output: Path, *more: str) -> Result:
    small = (
        "--samples", "8", "--anchors-per-domain", "3", "--limit", "6", "--text-tokens", "8",
        "--trials", "2", "--depth", "3", "--no-protect-ends", "--dtype", "float32",
    )  # fmt: skip
    command = ["calibrate", "anchors", "--model", str(model), "--data", str(data)]
    return CliRunner().invoke(app, [*command, "--output", str(output), *small, *more])


def test_a_store_is_built_installed_and_used(built: tuple[Path, Path, Result]) -> None:
    checkpoint, output, done = built
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["output"] == str(output) and set(told["unseen_general_share"]) == {"signs"}
    assert set(told["ships"]) == {"animals", "code"}
    store = AnchorStore.load(output)
    assert store.labels == ("animals",) * 3 + ("code",) * 3
    assert store.facts["num_samples"] == {"animals": 8, "code": 8}
    assert store.facts["routing"]["num_held_out"] == 4
    assert store.facts["routing"]["accuracy"] == told["accuracy"]
    general = json.loads((output / "general" / "skip.json").read_text())["setting"]
    for name, how in store.facts["settings"].items():
        own = json.loads((output / name / "skip.json").read_text())["setting"]
        assert store.settings[name].to_dict() == (own if how["ships"] == "own" else general)
        assert name in done.stderr
    assert store.general.to_dict() == general
    drawn = json.loads((output / "map.json").read_text())
    assert {one["label"] for one in drawn["anchors"]} == {"animals", "code"}
    assert {one["label"] for one in drawn["samples"]} == {"animals", "code", "signs (unseen)"}
    manifest = read_manifest(checkpoint)
    assert manifest is not None and manifest.methods["knn-ssd"] == {"store": "knn-ssd"}
    assert manifest.methods["layer-skip"] == general
    assert (checkpoint / "knn-ssd" / "map.json").exists()
    prompts, plain = ["the cat sat", "print(a[0])", "猫"], {"max_new_tokens": 12}
    model = Draftless.from_pretrained(checkpoint, drafter="knn-ssd")
    expected = model.with_drafter("none").generate(prompts, **plain)
    assert [o.token_ids for o in model.generate(prompts, **plain)] == [
        o.token_ids for o in expected
    ]
    sources = {s for chunk in model.stream(prompts[0], **plain) for s in chunk.sources if s}
    assert sources <= {"skip animals"}


def test_an_interrupted_build_goes_on(
    data: Path, built: tuple[Path, Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second search: the first one and all vectors stand, and the end is the same."""
    checkpoint, _, _ = built
    searched: list[str] = []

    def stop_in_code(*args: Any, **more: Any) -> Any:
        searched.append(args[3].name)
        if args[3].name == "code":
            raise KeyboardInterrupt
        return search_skip_setting(*args, **more)

    monkeypatch.setattr(domain_settings, "search_skip_setting", stop_in_code)
    stopped = build(checkpoint, data, tmp_path / "out")
    assert stopped.exit_code == 130 or isinstance(stopped.exception, KeyboardInterrupt)
    assert searched == ["general", "animals", "code"]
    assert "with --resume" in " ".join(stopped.output.split())
    with pytest.raises(ArtifactError, match=r"anchors.json"):
        AnchorStore.load(tmp_path / "out")
    monkeypatch.undo()
    refused = build(checkpoint, data, tmp_path / "out")
    assert isinstance(
        refused.exception, ConfigError
    ) and "is not empty; go on with --resume" in str(refused.exception)
    tried = (tmp_path / "out" / "animals" / "study.jsonl").read_text()
    monkeypatch.setattr("draftless.calibration.anchors.prompt_vectors", None)  # must not be needed
    done = build(checkpoint, data, tmp_path / "out", "--resume")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "animals" / "study.jsonl").read_text() == tried
    assert set(AnchorStore.load(tmp_path / "out").labels) == set(WORDS)


def test_domains_are_found_and_settings_are_given(
    data: Path, built: tuple[Path, Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, output, _ = built
    monkeypatch.setattr(skip_search, "measure_costs", None)  # nothing is searched
    for name in ("general", "cluster-1", "cluster-2"):
        (tmp_path / "ready" / name).mkdir(parents=True)
        skip_file = (output / "general" / "skip.json").read_text()
        (tmp_path / "ready" / name / "skip.json").write_text(skip_file)
    more = ("--clusters", "2", "--settings", str(tmp_path / "ready"), "--anchors", "centroids")
    done = build(checkpoint, data, tmp_path / "out", *more)
    assert done.exit_code == 0, done.output
    store = AnchorStore.load(tmp_path / "out")
    assert set(store.labels) == {"cluster-1", "cluster-2"} and store.kind == "centroids"
    assert {how["ships"] for how in store.facts["settings"].values()} == {"given"}
    assert list(store.facts["silhouettes"]) == ["2"]
    assert not (tmp_path / "out" / "texts.json").exists(), "no text is written for no search"


def test_a_store_inside_the_checkpoint_is_not_copied(data: Path, tmp_path: Path) -> None:
    checkpoint = save_training_model(tmp_path / "model")
    done = build(checkpoint, data, checkpoint / "sets", "--domain", "code", "--install")
    assert done.exit_code == 0, done.output
    manifest = read_manifest(checkpoint)
    assert manifest is not None and manifest.methods["knn-ssd"] == {"store": "sets"}
    assert not (checkpoint / "knn-ssd").exists()
    assert set(AnchorStore.load(checkpoint / "sets").labels) == {"code"}


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--clusters", "many"), ConfigError, "'many' is neither auto nor a number"),
        (("--clusters", "0"), ConfigError, "--clusters 0 is below 1"),
        (("--domain", "code", "--unseen", "code"), ConfigError, "both --domain and --unseen"),
        (("--unseen", "prose"), InputError, "has no domain prose; it has animals, code, signs"),
        (("--domain", "prose"), InputError, "no domain prose"),
        (("--unseen", "code", "--unseen", "signs", "--unseen", "animals"), InputError, "leave one"),
        (("--model", "some/name", "--install"), ConfigError, "some/name"),
        (("--keep", "2"), ConfigError, "--keep 2.0"),
        (("--anchors", "medoids"), ConfigError, "'medoids'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_the_model_is_loaded(
    more: tuple[str, ...], error: type, message: str, data: Path, tmp_path: Path
) -> None:
    done = build(tmp_path / "no model", data, tmp_path / "out", *more)
    assert isinstance(done.exception, error), done.exception
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--unseen",)], ids=["seen", "unseen"])
@pytest.mark.parametrize("name", ["general", "a/b", ".hidden"])
def test_names_that_are_no_folders(name: str, more: tuple[str, ...], tmp_path: Path) -> None:
    line = json.dumps({"prompt": "the cat", "domain": name})
    (tmp_path / "all.jsonl").write_text(line + "\n")
    given = [*more, name] if more else []
    done = build(tmp_path / "no model", tmp_path / "all.jsonl", tmp_path / "out", *given)
    assert isinstance(done.exception, InputError) and repr(name) in str(done.exception)
