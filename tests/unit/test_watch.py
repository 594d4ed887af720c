"""What is done to a loaded model between requests: new weights count, another form is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from typer.testing import CliRunner

from draftless import Draftless
from draftless.cli import app
from draftless.engine.load import Compile
from draftless.errors import ArtifactError, CapabilityError
from draftless.skip_set import SkipSet
from support.models import build_model, prompt_ids, stock_model

PROMPT = prompt_ids(20, seed=4)
Change = Callable[[PreTrainedModel, PreTrainedModel], None]


def in_place(model: PreTrainedModel, other: PreTrainedModel) -> None:
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)


def one_layer_in_place(model: PreTrainedModel, other: PreTrainedModel) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.copy_(other.model.layers[1].mlp.up_proj.weight)


def through_data(model: PreTrainedModel, other: PreTrainedModel) -> None:
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data.clone()


def loaded(model: PreTrainedModel, other: PreTrainedModel) -> None:
    model.load_state_dict(copy.deepcopy(other.state_dict()))


def assigned(model: PreTrainedModel, other: PreTrainedModel) -> None:
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


def an_optimizer(model: PreTrainedModel, _: PreTrainedModel) -> None:
    """A step of training."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(parameters, lr=10.0)
    model(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
    optimizer.step()


def another_module(model: PreTrainedModel, other: PreTrainedModel) -> None:
    model.model.layers[0].mlp = copy.deepcopy(other.model.layers[0].mlp)


CHANGES = (
    in_place,
    one_layer_in_place,
    through_data,
    loaded,
    assigned,
    an_optimizer,
    another_module,
)


def texts(model: Draftless) -> list[list[int]]:
    """By a greedy request, a sampled one, and one whose drafts come from a view of the model."""
    skipping = model.with_drafter("layer-skip", {"skip_set": {"attention": [0], "mlp": [1]}})
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    return [
        model.generate(PROMPT, **options).token_ids,
        model.generate(PROMPT, temperature=1.0, seed=3, **options).token_ids,
        skipping.generate(PROMPT, **options).token_ids,
    ]


def load(model: PreTrainedModel, compile: Compile) -> Draftless:
    return Draftless.from_pretrained(model, drafter="prompt-lookup", compile=compile)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("compile", "dtype"),
    [(False, "fp32"), (True, "fp32"), (True, "bf16"), ("inductor", "fp32")],
    ids=str,
)
def test_changed_weights_count(change: Change, compile: Compile, dtype: str) -> None:
    if compile == "inductor" and change not in (one_layer_in_place, assigned):
        pytest.skip("compiling takes seconds, and what is asked is the same")
    other = build_model(stock_model("llama").config, "fp32", seed=1).to(
        stock_model("llama", dtype).dtype
    )
    model = load(copy.deepcopy(stock_model("llama", dtype)), compile)
    before = texts(model)
    change(model.target.model, other)
    fresh = copy.deepcopy(stock_model("llama", dtype))
    fresh.load_state_dict(copy.deepcopy(model.target.model.state_dict()))
    wanted = texts(load(fresh, compile))
    assert wanted != before, "the change shows"
    assert texts(model) == wanted
    assert model.target.is_compiled == (compile is not False)


def test_weights_that_stay_are_packed_once() -> None:
    model = load(copy.deepcopy(stock_model("llama", "fp32")), True)
    texts(model)
    compiled = model.target._compiled
    texts(model)
    assert model.target._compiled is compiled
    assert compiled is not None
    assert compiled.skip_sets == [SkipSet((0,), (1,))]
    in_place(model.target.model, build_model(stock_model("llama").config, "fp32", seed=1))
    model.generate(PROMPT, max_new_tokens=1)
    assert model.target._compiled is not compiled
    assert model.target._compiled is not None
    assert model.target._compiled.skip_sets == [SkipSet((0,), (1,))], "views are prepared, too"


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda model: model.set_attn_implementation("eager"), "has eager attention .* now"),
        (lambda model: model.double(), "in torch.float64 on cpu now"),
        (lambda model: model.to(torch.bfloat16), "in torch.bfloat16 on cpu now"),
        (lambda model: model.train(), "is in training mode"),
        (lambda model: model.model.layers[1].train(), "is in training mode"),
    ],
    ids=["attention", "wider", "narrower", "training", "one layer in training"],
)
def test_another_form_is_refused(compile: bool, change: Callable[[Any], Any], match: str) -> None:
    model = load(copy.deepcopy(stock_model("llama", "fp32")), compile)
    change(model.target.model)
    with pytest.raises(CapabilityError, match=match):
        model.generate(PROMPT, max_new_tokens=2)
    with pytest.raises(CapabilityError, match=match):
        next(iter(model.stream(PROMPT, max_new_tokens=2)))


def test_a_form_that_comes_back_is_taken() -> None:
    model = load(copy.deepcopy(stock_model("llama", "fp32")), True)
    wanted = texts(model)
    model.target.model.train()
    model.target.model.eval()
    model.target.model.set_attn_implementation("eager")
    model.target.model.set_attn_implementation("draftless")
    assert texts(model) == wanted


# --- weights that are not there ----------------------------------------------------------------


@contextmanager
def rewritten(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    file = folder / "model.safetensors"
    weights = load_file(file)
    yield weights
    save_file(weights, file, {"format": "pt"})


def without_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def of_another_name(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.renamed.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")


def of_another_shape(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:-1].clone()


@pytest.mark.parametrize("spoil", [without_one, of_another_name, of_another_shape])
def test_a_checkpoint_without_some_weights_is_refused(
    spoil: Callable[[dict[str, torch.Tensor]], None], checkpoint: Path, tmp_path: Path
) -> None:
    folder = copied(checkpoint, tmp_path)
    assert Draftless.from_pretrained(folder, drafter="none").generate("x", max_new_tokens=1)
    with rewritten(folder) as weights:
        spoil(weights)
    with pytest.raises(
        ArtifactError, match=r"^1 weights are missing .*: model.layers.1.mlp.up_proj"
    ):
        Draftless.from_pretrained(folder, drafter="none")
    data = tmp_path / "data.jsonl"
    lines = [json.dumps({"prompt": f"question {i}", "response": f"{i * i}"}) for i in range(99)]
    data.write_text("\n".join(lines))
    options = ["--model", str(folder), "--data", str(data), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["train", "msn", *options])
    assert isinstance(result.exception, ArtifactError), result.output
    assert "up_proj" in str(result.exception)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def copied(checkpoint: Path, to: Path) -> Path:
    folder = to / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_tied_weights_are_not_missing(checkpoint: Path, tmp_path: Path) -> None:
    model = copy.deepcopy(stock_model("llama", "fp32"))
    model.config.tie_word_embeddings = True
    assert isinstance(model.lm_head, nn.Linear)
    model.tie_weights()
    folder = copied(checkpoint, tmp_path)
    model.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert Draftless.from_pretrained(folder, drafter="none", tokenizer=None)
