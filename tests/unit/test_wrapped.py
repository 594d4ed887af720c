"""Models as others wrap them: unwrapped where the outputs stay theirs, refused by name where not."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaForCausalLM

from draftless import (
    ArtifactError,
    CapabilityError,
    ConfigError,
    Draftless,
    DraftlessError,
    wrapped,
)
from draftless.manifest import Manifest, write_manifest
from draftless.wrapped import unwrap

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPT = [20, 21, 20, 22, 20, 21]
IDS = torch.tensor([PROMPT])
LORA: dict[str, Any] = {
    "r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM",
    "init_lora_weights": False, "lora_dropout": 0.5,
}  # fmt: skip


@pytest.fixture
def stock(checkpoint: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(checkpoint)


def adapted(checkpoint: Path, **options: Any) -> Any:
    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained(checkpoint)
    return peft.get_peft_model(base, peft.LoraConfig(**{**LORA, **options}))


def stock_ids(model: Any) -> list[int]:
    ids = model.eval().generate(input_ids=IDS, max_new_tokens=16, do_sample=False)
    return list(ids[0, len(PROMPT) :].tolist())


def own_ids(model: Any, name: str = "prompt-lookup", **options: Any) -> list[int]:
    return list(
        Draftless.from_pretrained(model, drafter=name, **options)
        .generate(PROMPT, max_new_tokens=16)
        .token_ids
    )


def test_a_peft_model_keeps_its_adapter(checkpoint: Path, stock: Any) -> None:
    whole = adapted(checkpoint)
    wanted = stock_ids(whole)
    assert wanted != stock_ids(stock)
    assert own_ids(whole) == own_ids(whole, "recycling") == wanted
    with whole.disable_adapter():
        assert own_ids(whole) == stock_ids(stock)


def test_a_compiled_module_is_unwrapped(checkpoint: Path, stock: Any) -> None:
    wanted = stock_ids(stock)
    assert own_ids(torch.compile(stock)) == wanted
    whole = adapted(checkpoint)
    wanted = stock_ids(whole)
    assert own_ids(torch.compile(whole)) == wanted
    stock.compile()
    with pytest.raises(CapabilityError, match=r"compiled in place by model.compile\(\)"):
        own_ids(stock)


def test_an_adapters_folder_is_merged_into_its_base(checkpoint: Path, tmp_path: Path) -> None:
    whole = adapted(checkpoint)
    wanted = stock_ids(whole)
    whole.save_pretrained(tmp_path)
    model = Draftless.from_pretrained(tmp_path, drafter="prompt-lookup")
    assert model.generate(PROMPT, max_new_tokens=16).token_ids == wanted
    assert type(model.target.model) is LlamaForCausalLM
    assert not any("lora" in name for name, _ in model.target.model.named_modules())
    assert model.encode("the cat") == Draftless.from_pretrained(checkpoint).encode("the cat")
    half = Draftless.from_pretrained(tmp_path, drafter="none", dtype="bfloat16")
    assert half.target.model.dtype == torch.bfloat16


def test_an_adapter_that_cannot_be_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted(checkpoint).save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "peft", None)
        with pytest.raises(CapabilityError, match=r"is an adapter, which needs peft: pip install"):
            Draftless.from_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace(str(checkpoint), str(tmp_path / "missing")))
    with pytest.raises(ArtifactError, match="cannot load the adapter"):
        Draftless.from_pretrained(tmp_path)
    file.write_text("{}")
    with pytest.raises(ArtifactError, match="names no base model"):
        Draftless.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            "type PROMPT_TUNING, which works outside the layers",
        ),
        (
            peft.LoraConfig(**{**LORA, "alora_invocation_tokens": [5, 6]}),
            "is an activated LoRA",
        ),
    ],
    ids=["prompt tuning", "activated lora"],
)
def test_adapters_that_are_more_than_layers(stock: Any, config: Any, message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        Draftless.from_pretrained(peft.get_peft_model(stock, config))


class Rounded(torch.Tensor):
    """A tensor that holds its values in another way, as torchao's do."""


def test_weights_that_were_quantised_in_memory(stock: Any) -> None:
    dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(stock), {torch.nn.Linear})
    with pytest.raises(CapabilityError, match=r"q_proj is a quantised torch\.ao\..*int8=True"):
        Draftless.from_pretrained(dynamic)
    weight = stock.model.layers[0].mlp.up_proj.weight.detach().as_subclass(Rounded)
    linear = stock.model.layers[0].mlp.up_proj
    del linear.weight
    linear.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    with pytest.raises(CapabilityError, match=r"up_proj.weight is quantised .*Rounded"):
        Draftless.from_pretrained(stock)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: SimpleNamespace(model=model), "SimpleNamespace .* give its .model"),
        (lambda model: SimpleNamespace(module=model), "wraps a model for training; give its .module"),
        (lambda model: model.model.embed_tokens, "Embedding is not a transformers model; give a"),
        (lambda _: 5, "int is not a transformers model; give a folder"),
    ],
)  # fmt: skip
def test_other_objects_are_refused_by_name(stock: Any, wrap: Any, message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        Draftless.from_pretrained(wrap(stock))
    assert unwrap(stock) is stock


# --- options of the hub ------------------------------------------------------------------------


def test_hub_options_reach_weights_tokenizer_and_manifest(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(checkpoint, folder)
    write_manifest(folder, Manifest({"sdsat": {"adaptive_ids": [60]}}, default_drafter="sdsat"))
    options: dict[str, Any] = {"cache_dir": tmp_path, "revision": COMMIT}
    model = Draftless.from_pretrained("someone/tiny", local_files_only=True, token="x", **options)
    assert model.target.input_only_ids == (60,)
    assert model.encode("the cat")
    with pytest.raises(ArtifactError, match="cannot load a model from 'someone/tiny'"):
        Draftless.from_pretrained("someone/tiny", cache_dir=tmp_path, revision="other")


def test_code_of_the_checkpoint_is_refused_though_it_is_trusted(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    config = (tmp_path / "config.json").read_text().replace('"llama"', '"own"')
    auto = '{"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},'
    (tmp_path / "config.json").write_text(config.replace("{", auto, 1))
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(CapabilityError, match="not from transformers; remote code may"):
        Draftless.from_pretrained(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": "float32"}, "does not take torch_dtype; use dtype="),
        ({"device_map": "auto"}, "does not take device_map; use device="),
        ({"load_in_4bit": True}, "does not take load_in_4bit; quantised models"),
        ({"revison": "main"}, "does not know revison; did you mean revision?"),
        ({"compil": True}, "did you mean compile?"),
        ({"subfolder": "x"}, "load the model with transformers and give it"),
        ({"revision": "main"}, "revision='main' goes with a name on the hub, not with the folder"),
    ],
)
def test_options_of_loading_that_are_refused(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Draftless.from_pretrained(checkpoint, **options)


def test_a_loaded_model_needs_no_hub(stock: Any) -> None:
    with pytest.raises(ConfigError, match="a loaded model needs no cache_dir; leave it out"):
        Draftless.from_pretrained(stock, cache_dir="x")
    with pytest.raises(DraftlessError, match="leave them out"):
        Draftless.from_pretrained(stock, dtype="float32")


def test_nobody_asks_the_hub_for_the_adapter_of_a_missing_model() -> None:
    assert wrapped.adapter_base("someone/missing", {}) is None
