"""The target: prefill, tree forwards, masks and positions, attention names."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from draftless.drafters.registry import DRAFTERS
from draftless.engine import target as module
from draftless.engine.loop import make_request
from draftless.engine.masks import MaskBuilder
from draftless.engine.target import Attention, TargetModel
from draftless.errors import ArtifactError, CapabilityError, ConfigError, InputError
from draftless.layout import chain_parents, tree_layout
from draftless.params import SamplingParams
from support.drafters import registered
from support.driving import Job, run
from support.models import CONTEXT, FAMILIES, VOCAB_SIZE, prompt_ids, stock_model, target

TOLERANCE = 1e-5  # transformers computes norms, rotations and softmax in fp32 even in fp64 models


def stock_logits(family: str, ids: list[int]) -> torch.Tensor:  # [len(ids), V]
    with torch.inference_mode():
        return stock_model(family)(torch.tensor([ids])).logits[0]


@torch.inference_mode()
def test_what_a_target_tells() -> None:
    assert target("llama").vocab_size == VOCAB_SIZE
    assert target("llama").max_positions == CONTEXT
    cache = target("llama").make_cache(3, 20)
    assert cache.data.shape == (2, 2, 3, 2, 20, 8)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_ragged_batch_of_trees(family: str) -> None:
    """Each node's logits are those of a plain forward over its own path, in every row."""
    model = target(family)
    prompts = [prompt_ids(n, seed=3) for n in (23, 1, 11)]
    cache = model.make_cache(3, 8)
    for row, prompt in enumerate(prompts):
        model.prefill(cache, row, prompt[:-1])
    assert cache.lengths == [22, 0, 10]
    trees = [(-1, 0, 0, 1, 1, 2, 5), (-1, 0, 1), (-1, 0, 0, 0, 3)]
    nodes = [[prompt[-1], *range(5, 4 + len(t))] for prompt, t in zip(prompts, trees, strict=True)]
    logits = model.forward(cache, nodes, [tree_layout(t) for t in trees])
    assert [of_row.shape for of_row in logits] == [(len(tree), VOCAB_SIZE) for tree in trees]
    for row, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        paths = [prompt]
        for node in range(1, len(tree)):
            paths.append([*paths[tree[node]], nodes[row][node]])
        for node, path in enumerate(paths):
            wanted = stock_logits(family, path)[-1]
            torch.testing.assert_close(logits[row][node], wanted, atol=TOLERANCE, rtol=TOLERANCE)
    assert cache.data.isfinite().all(), "padding nodes see something"


@torch.inference_mode()
def test_prefill_in_chunks_is_prefill_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = target("mistral")
    prompt = prompt_ids(40)
    whole, parts = model.make_cache(1, 40), model.make_cache(1, 40)
    assert model.prefill(whole, 0, prompt).num_passes == 1
    monkeypatch.setattr(module, "_PREFILL_CHUNK", 7)
    assert model.prefill(parts, 0, prompt).num_passes == 6
    assert whole.lengths == parts.lengths == [40]
    torch.testing.assert_close(
        whole.data[..., :40, :], parts.data[..., :40, :], atol=TOLERANCE, rtol=TOLERANCE
    )


@torch.inference_mode()
def test_prefill_computes_no_logits() -> None:
    """The reference computes those of the whole prompt (bug 11)."""
    model = target("llama")
    widths: list[int] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    model.prefill(model.make_cache(1, 20), 0, prompt_ids(20))
    hook.remove()
    assert widths == []


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_prompt_vector_is_the_mean_of_final_hidden_states(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = target(family)
    prompt = prompt_ids(20)
    ids = torch.tensor([prompt])
    states = stock_model(family)(ids, use_cache=False, output_hidden_states=True).hidden_states
    monkeypatch.setattr(module, "_PREFILL_CHUNK", 7)
    vector = model.prefill(model.make_cache(1, 20), 0, prompt).vector
    assert vector is not None
    assert vector.dtype == torch.float32
    torch.testing.assert_close(vector.double(), states[-1][0].mean(0), atol=1e-5, rtol=1e-5)
    assert model.prefill(model.make_cache(1, 1), 0, []).vector is None


def test_a_fingerprint_is_that_of_the_weights_in_any_dtype() -> None:
    model = copy.deepcopy(stock_model("llama", "fp32")).to(torch.bfloat16)
    first = TargetModel(model).fingerprint()
    assert TargetModel(copy.deepcopy(model).float()).fingerprint() == first
    assert TargetModel(copy.deepcopy(model), "eager").fingerprint() == first
    assert target("llama", "fp32").fingerprint() == first, "which has more digits"
    assert target("qwen2", "fp32").fingerprint() != target("llama", "fp32").fingerprint()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    assert TargetModel(model).fingerprint() != first


@torch.inference_mode()
def test_the_cache_grows_between_steps() -> None:
    model = target("llama")
    prompt = prompt_ids(30)
    cache = model.make_cache(1, 4)
    model.prefill(cache, 0, prompt[:-1])
    logits = model.forward(cache, [prompt[-1:]], [tree_layout((-1,))])
    wanted = stock_logits("llama", prompt)[-1]
    torch.testing.assert_close(logits[0][0], wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_stock_attention_stays_available() -> None:
    assert target("llama", "fp64", "eager").model.config._attn_implementation == "eager"
    assert target("llama", "fp64", "sdpa").model.config._attn_implementation == "sdpa"
    assert target("llama").model.config._attn_implementation == "draftless"
    with pytest.raises(ConfigError, match="unknown; use draftless, sdpa or eager"):
        TargetModel(copy.deepcopy(stock_model("llama")), "flash")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="caps its attention scores"):
        TargetModel(copy.deepcopy(stock_model("gemma2")), "sdpa")


def test_a_model_that_ignores_the_tree_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test runs two small trees, whatever the configuration claims."""
    masks = MaskBuilder.masks

    def causal(self, lengths, layouts, width, context):  # type: ignore[no-untyped-def]
        chains = [tree_layout(chain_parents(layout.num_nodes)) for layout in layouts]
        return masks(self, lengths, chains, width, context)

    monkeypatch.setattr(MaskBuilder, "masks", causal)
    model = copy.deepcopy(stock_model("llama"))
    model.set_attn_implementation("eager")
    with pytest.raises(CapabilityError, match="does not honour 4-D masks"):
        TargetModel(model)
    assert model.config._attn_implementation == "eager", "a refused model stays what it was"


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load a model"):
        TargetModel.from_pretrained(tmp_path)
    stock_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="cannot load a model"):
        TargetModel.from_pretrained(tmp_path)


def test_a_checkpoint_loads_in_the_wanted_precision(tmp_path: Path) -> None:
    stock_model("llama", "fp32").save_pretrained(tmp_path)
    assert TargetModel.from_pretrained(tmp_path).model.dtype == torch.float32
    assert TargetModel.from_pretrained(tmp_path, dtype="fp64").model.dtype == torch.float64


# --- ids that are input only -------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["draftless", "sdpa", "eager"])
@torch.inference_mode()
def test_input_only_ids_are_fed_but_have_no_logit(attention: Attention) -> None:
    """All others keep theirs, also after an input-only id; prefill and padding rows too."""
    model = TargetModel(copy.deepcopy(stock_model("llama")), attention, input_only_ids=[60, 7])
    assert model.input_only_ids == (60, 7)
    cache = model.make_cache(2, 8)
    nodes, layouts = [[3, 60, 5], [4]], [tree_layout((-1, 0, 0)), tree_layout((-1,))]
    logits = model.forward(cache, nodes, layouts)
    together = torch.cat(logits)
    assert (together == -torch.inf).nonzero()[:, 1].unique().tolist() == [7, 60]
    assert (together[:, [7, 60]] == -torch.inf).all()
    others = [i for i in range(VOCAB_SIZE) if i not in (7, 60)]
    for node, path in enumerate(([3], [3, 60], [3, 5])):
        wanted = stock_logits("llama", path)[-1, others]
        torch.testing.assert_close(logits[0][node, others], wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_input_only_ids_must_be_ids(token_id: int) -> None:
    stock = copy.deepcopy(stock_model("llama"))
    with pytest.raises(ConfigError, match=f"{token_id}.* lie outside the vocabulary 0..60"):
        TargetModel(stock, input_only_ids=[5, token_id])
    assert stock.config._attn_implementation == "eager"


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_input_only_ids_are_never_emitted(name: str, temperature: float) -> None:
    """Half of the vocabulary is; every drafter writes the plain text of the other half."""
    banned = range(0, VOCAB_SIZE, 2)
    model = TargetModel(copy.deepcopy(stock_model("llama")), input_only_ids=banned)
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=1)
    job = Job([5, 7, 5, 7, 5], params)
    (result,) = run(model, registered(name), [job])
    assert set(result.token_ids).isdisjoint(banned)
    assert result.token_ids == run(model, registered("none"), [job])[0].token_ids


def test_prompts_and_options_may_not_name_them() -> None:
    model = TargetModel(copy.deepcopy(stock_model("llama")), input_only_ids=[60])
    with pytest.raises(InputError, match=r"holds \[60\]: adaptive tokens"):
        make_request(model, 0, [3, 60, 5], SamplingParams(), None, ())
    with pytest.raises(ConfigError, match="forced_eos_token_id=60 is an adaptive token"):
        make_request(model, 0, [3], SamplingParams(forced_eos_token_id=60), None, ())
