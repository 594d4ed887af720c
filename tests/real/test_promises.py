"""What is promised of pretrained models: they compile silently, and no choice changes their ids."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from draftless import Draftless, SamplingParams
from draftless.drafters.registry import DRAFTERS, NEED_CHECKPOINT

pytestmark = [pytest.mark.real, pytest.mark.slow]

UNTRAINED = [name for name in DRAFTERS if name not in NEED_CHECKPOINT]
NUM_FP32 = 20
BATCH = 8
NEW_TOKENS = 32
NEW_TOKENS_OF_LARGE = 16  # whose tests would take hours
SAMPLED = {"temperature": 0.8, "seed": 7}

Ids = list[list[int]]


@pytest.fixture(scope="module")
def greedy(folder: Path) -> dict[str, Any]:
    """Options of a greedy request to this model."""
    return {"max_new_tokens": NEW_TOKENS_OF_LARGE if "1.5b" in folder.name else NEW_TOKENS}


def ids_of(model: Draftless, prompts: list[Any], options: dict[str, Any]) -> Ids:
    """One request at a time."""
    params = SamplingParams(**options)
    return [list(model.generate(prompt, params).token_ids) for prompt in prompts]


def load_silently(folder: Path, **how: Any) -> Draftless:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = Draftless.from_pretrained(folder, drafter="none", **how)
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    assert said == []
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_compiles_without_a_warning(folder: Path, dtype: str) -> None:
    model = load_silently(folder, compile=True, dtype=dtype)
    assert model.target.is_compiled
    assert str(model.target.model.dtype) == f"torch.{dtype}"


class TestFloat32:
    """Every loop gives the ids that `transformers` gives."""

    @pytest.fixture(scope="class")
    def model(self, folder: Path) -> Iterator[Draftless]:
        yield Draftless.from_pretrained(folder, drafter="none", dtype="float32", compile=True)

    @pytest.fixture(scope="class")
    def plain(self, model: Draftless, prompts: list[Any], greedy: dict[str, Any]) -> Ids:
        return ids_of(model, prompts[:NUM_FP32], greedy)

    @pytest.mark.parametrize("drafter", [name for name in UNTRAINED if name != "none"])
    def test_greedy_ids_are_those_of_the_plain_loop(
        self,
        model: Draftless,
        prompts: list[Any],
        greedy: dict[str, Any],
        plain: Ids,
        drafter: str,
    ) -> None:
        assert ids_of(model.with_drafter(drafter), prompts[:NUM_FP32], greedy) == plain

    def test_greedy_ids_are_those_of_transformers(
        self,
        folder: Path,
        model: Draftless,
        prompts: list[Any],
        greedy: dict[str, Any],
        plain: Ids,
    ) -> None:
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # Set on the model: what a config leaves out would be the checkpoint's, sampling included.
        stock.generation_config = GenerationConfig(
            max_new_tokens=greedy["max_new_tokens"],
            eos_token_id=list(model.eos_token_ids),
            pad_token_id=model.eos_token_ids[0],
        )
        for prompt, expected in zip(prompts[:NUM_FP32], plain, strict=True):
            ids = torch.tensor([model.encode(prompt)])
            found = stock.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
            assert found.tolist() == expected


FRESH_PROCESS = """
import json, sys
from draftless import Draftless, SamplingParams
folder, prompts, options = json.load(sys.stdin)
model = Draftless.from_pretrained(folder, drafter="auto")
params = SamplingParams(**options)
print("IDS" + json.dumps([list(model.generate(one, params).token_ids) for one in prompts]))
"""


class TestBfloat16:
    """The default configuration: ids depend on prompt, options and seed, and on nothing else."""

    @pytest.fixture(scope="class")
    def model(self, folder: Path) -> Iterator[Draftless]:
        model = Draftless.from_pretrained(folder, drafter="none")
        assert model.target.model.dtype == torch.bfloat16
        yield model

    @pytest.fixture(scope="class", params=[{}, SAMPLED], ids=["greedy", "sampled"])
    def options(self, request: pytest.FixtureRequest, greedy: dict[str, Any]) -> dict[str, Any]:
        return greedy | request.param

    @pytest.fixture(scope="class")
    def plain(self, model: Draftless, prompts: list[Any], options: dict[str, Any]) -> Ids:
        return ids_of(model, prompts, options)

    @pytest.mark.parametrize("drafter", ["none", "auto", "prompt-lookup", "recycling"])
    def test_of_the_drafter_and_of_earlier_requests(
        self,
        model: Draftless,
        prompts: list[Any],
        options: dict[str, Any],
        plain: Ids,
        drafter: str,
    ) -> None:
        drafting = model.with_drafter(drafter)
        assert ids_of(drafting, prompts, options) == plain
        if drafter == "auto":  # again, with what the first run has taught its sources
            assert ids_of(drafting, prompts, options) == plain

    @pytest.mark.parametrize("drafter", ["none", "auto"])
    def test_of_the_batch(
        self,
        model: Draftless,
        prompts: list[Any],
        options: dict[str, Any],
        plain: Ids,
        drafter: str,
    ) -> None:
        drafting, params = model.with_drafter(drafter), SamplingParams(**options)
        found: Ids = []
        for start in range(0, len(prompts), BATCH):
            outputs = drafting.generate(prompts[start : start + BATCH], params)
            found += [list(output.token_ids) for output in outputs]
        assert found == plain

    def test_of_the_process(
        self, folder: Path, prompts: list[Any], options: dict[str, Any], plain: Ids
    ) -> None:
        given = json.dumps([str(folder), prompts, options])
        command = [sys.executable, "-c", FRESH_PROCESS]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.partition("IDS")[2]) == plain


def test_the_chat_ends(folder: Path, prompts: list[Any]) -> None:
    if isinstance(prompts[0], str):
        pytest.skip("a base model has no chat to end")
    model = Draftless.from_pretrained(folder, drafter="none")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = model.generate(question, max_new_tokens=64)
    assert "Paris" in output.text
    assert output.finish_reason == "stop"


def test_a_gguf_file_says_what_its_folder_says(folder: Path, prompts: list[Any]) -> None:
    file = folder.parent / "gguf" / f"{folder.name}.gguf"
    if not file.is_file():
        pytest.skip(f"there is no {file}; make real-models")
    of_folder = Draftless.from_pretrained(folder, drafter="none")
    of_file = Draftless.from_pretrained(file, drafter="none")
    assert all(of_file.encode(prompt) == of_folder.encode(prompt) for prompt in prompts)
    weights = of_folder.target.model.state_dict()
    for name, weight in of_file.target.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
