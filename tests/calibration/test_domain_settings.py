"""A domain gets its own set only where that is clearly better on held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from draftless import Draftless
from draftless.calibration import domain_settings
from draftless.calibration.costs import CostTable
from draftless.calibration.domain_settings import find_settings, mixed_texts, read_given
from draftless.calibration.skip_search import SearchOptions
from draftless.calibration.texts import OwnText, Prompt, TextOptions, make_texts, split_texts
from draftless.drafters.registry import make_drafter
from draftless.errors import ArtifactError
from draftless.jsonl import write_json
from draftless.skip_set import SkipSet, SkipSetting
from support.models import prompt_ids, target

ALL_RIGHT = SkipSetting(SkipSet(), 0.0, 4)  # what skips nothing drafts what the target says
ALL_WRONG = SkipSetting(SkipSet((0, 1), (0, 1)), 0.0, 4)
FREE_DRAFTS = CostTable(2, 8, (1.0,) * 5, 0.0, 0.0, 0.0, 0.0)
Texts = dict[str, list[OwnText]]
OPTIONS = SearchOptions(depth=4)


@pytest.fixture(scope="module")
def model() -> Draftless:
    return Draftless(target("llama", "fp32"), None, make_drafter("none"))


@pytest.fixture(scope="module")
def texts(model: Draftless) -> Texts:
    prompts = [
        Prompt(name, prompt_ids(3 + number, seed))
        for seed, name in enumerate(("math", "sql"))
        for number in range(8)
    ]
    made = make_texts(model, prompts, TextOptions(per_domain=8, num_tokens=12)).texts
    return {name: [text for text in made if text.domain == name] for name in ("math", "sql")}


class Planted:
    """A search that finds what it is told to, by the name of its folder."""

    def __init__(self, found: dict[str, SkipSetting]) -> None:
        self.found = found
        self.searched: dict[str, list[OwnText]] = {}

    def __call__(
        self, _model: Draftless, texts: Sequence[OwnText], _options: Any, folder: Path, **more: Any
    ) -> Any:
        self.searched[folder.name] = list(texts)
        more["on_trial"](1, 2.0)
        return SimpleNamespace(setting=self.found[folder.name], costs=FREE_DRAFTS)


def plant(monkeypatch: pytest.MonkeyPatch, **found: SkipSetting) -> Planted:
    planted = Planted(found)
    monkeypatch.setattr(domain_settings, "search_skip_setting", planted)
    return planted


def test_only_a_clear_gain_ships(
    model: Draftless, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, general=ALL_WRONG, math=ALL_RIGHT, sql=ALL_WRONG)
    told: list[tuple[str, int, float]] = []
    general, found = find_settings(
        model, texts, OPTIONS, tmp_path, given={}, on_trial=lambda *one: told.append(one)
    )
    assert told == [("general", 1, 2.0), ("math", 1, 2.0), ("sql", 1, 2.0)]
    assert general == ALL_WRONG
    assert (found["math"].ships, found["math"].setting) == ("own", ALL_RIGHT)
    assert found["math"].gain is not None and found["math"].gain.low > 1
    assert (found["sql"].ships, found["sql"].setting) == ("general", ALL_WRONG)
    assert found["sql"].to_dict() == {
        "ships": "general", "gain": {"margin": 0.0, "low": 0.0, "high": 0.0},
    }  # fmt: skip
    plant(monkeypatch, general=ALL_RIGHT, math=ALL_WRONG, sql=ALL_RIGHT)
    _, found = find_settings(model, texts, OPTIONS, tmp_path, given={})
    assert (found["math"].ships, found["math"].setting) == ("general", ALL_RIGHT)
    assert found["math"].gain is not None and found["math"].gain.high < 0


def test_what_is_given_is_not_searched(
    model: Draftless, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lonely = {**texts, "lonely": texts["math"][:1], "no texts": []}
    planted = plant(monkeypatch, sql=ALL_WRONG)
    given = {"math": ALL_WRONG, "general": ALL_RIGHT}
    general, found = find_settings(model, lonely, OPTIONS, tmp_path, given=given)
    assert general == ALL_RIGHT and set(planted.searched) == {"sql"}
    assert (found["math"].ships, found["math"].setting) == ("given", ALL_WRONG)
    for name in ("lonely", "no texts"):
        assert (found[name].ships, found[name].setting) == ("untried", ALL_RIGHT)


def test_the_mixture_holds_out_what_the_domains_hold_out(texts: Sequence[OwnText]) -> None:
    for count in (8, 7, 5, 2):
        some = {name: own[:count] for name, own in texts.items()}
        searched, held_out = split_texts(mixed_texts(some))
        each = [split_texts(own) for own in some.values()]
        assert {t.domain for t in searched} == {t.domain for t in held_out} == {"math", "sql"}
        assert set(searched) <= {t for half, _ in each for t in half}
        assert set(held_out) <= {t for _, half in each for t in half}


def test_ready_settings_are_read(tmp_path: Path) -> None:
    def write(label: str, fingerprint: str = "tiny") -> None:
        (tmp_path / label).mkdir()
        data = {
            "format_version": 1,
            "setting": ALL_WRONG.to_dict(),
            "model_fingerprint": fingerprint,
        }
        write_json(tmp_path / label / "skip.json", data)

    with pytest.raises(ArtifactError, match=r"has no DOMAIN/skip.json for any of math, general"):
        read_given(tmp_path, ["math"], "tiny")
    write("math")
    write("sql", "another")
    write("general")
    assert read_given(tmp_path, ["math", "code"], "tiny") == {
        "math": ALL_WRONG,
        "general": ALL_WRONG,
    }
    with pytest.raises(ArtifactError, match=r"sql/skip.json was found for the model another"):
        read_given(tmp_path, ["math", "sql"], "tiny")
