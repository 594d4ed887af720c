"""The public API: every form of prompt, batches, streams, options, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, TextStreamer

from draftless import (
    ArtifactError,
    ConfigError,
    Draftless,
    DraftlessError,
    DraftTree,
    InputError,
    SamplingParams,
)
from draftless.drafters.sdsat import SDSATDrafter
from draftless.manifest import Manifest, read_manifest, write_manifest
from draftless.prompts import PromptFormat
from support.tokenizer import small_tokenizer

PROMPTS = ["the cat", "a", "the dog sat on the mat and the cat sat on"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Draftless:
    return Draftless.from_pretrained(checkpoint, drafter="tr-jacobi")


@pytest.fixture(params=[{}, {"temperature": 0.9, "top_p": 0.9}], ids=["greedy", "sampled"])
def params(request: pytest.FixtureRequest) -> SamplingParams:
    return SamplingParams(max_new_tokens=24, seed=5, **request.param)


def test_text_ids_and_tensors_are_one_prompt(model: Draftless, params: SamplingParams) -> None:
    ids = model.encode(PROMPTS[0])
    outputs = [model.generate(p, params) for p in (PROMPTS[0], ids, torch.tensor(ids))]
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids
    assert outputs[0].text == small_tokenizer().decode(
        outputs[0].token_ids, skip_special_tokens=True
    )


def test_a_batch_gives_each_row_its_single_run(model: Draftless, params: SamplingParams) -> None:
    single = [model.generate(prompt, params) for prompt in PROMPTS]
    batch = model.generate(PROMPTS, params)
    assert [o.token_ids for o in batch] == [o.token_ids for o in single]
    assert [o.text for o in batch] == [o.text for o in single]
    assert [o.finish_reason for o in batch] == [o.finish_reason for o in single]


def test_every_prompt_may_have_its_own_params(model: Draftless) -> None:
    each = [
        SamplingParams(max_new_tokens=n, temperature=t, seed=n) for n, t in ((3, 0.0), (7, 1.0))
    ]
    batch = model.generate(PROMPTS[:2], each)
    assert [o.token_ids for o in batch] == [
        model.generate(p, q).token_ids for p, q in zip(PROMPTS, each, strict=False)
    ]


def test_one_prompt_in_a_list_returns_a_list(model: Draftless) -> None:
    (output,) = model.generate([PROMPTS[0]], max_new_tokens=2)
    assert len(output.token_ids) == 2


def test_chunks_join_to_the_output(model: Draftless, params: SamplingParams) -> None:
    chunks = list(model.stream(PROMPTS[2], params))
    output = chunks[-1].output
    assert output is not None and [c.output for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert "".join(c.text for c in chunks) == output.text
    assert [i for c in chunks for i in c.token_ids] == output.token_ids
    assert sum(c.num_accepted_tokens for c in chunks) == output.stats.num_accepted_tokens
    assert output.token_ids == model.generate(PROMPTS[2], params).token_ids


def test_a_stop_string_is_held_back_from_the_stream(model: Draftless) -> None:
    whole = model.generate(PROMPTS[0], max_new_tokens=40).text
    stop = whole[9:14]
    chunks = list(model.stream(PROMPTS[0], max_new_tokens=40, stop=stop))
    assert "".join(c.text for c in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].output is not None and chunks[-1].output.finish_reason == "stop"
    kept = model.generate(PROMPTS[0], max_new_tokens=40, stop=[stop], include_stop=True)
    assert kept.text == whole[: whole.index(stop) + len(stop)]
    assert model.encode(PROMPTS[0]) and stop in small_tokenizer().decode(kept.token_ids)


def test_a_transformers_streamer_gets_prompt_and_tokens(model: Draftless) -> None:
    class Collector(TextStreamer):
        text, ended = "", False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            self.ended |= stream_end

    streamer = Collector(small_tokenizer(), skip_prompt=True, skip_special_tokens=True)
    output = model.generate(PROMPTS[0], max_new_tokens=16, streamer=streamer)
    assert (streamer.text, streamer.ended) == (output.text, True)
    with pytest.raises(ConfigError, match="one prompt, not 2"):
        model.generate(PROMPTS[:2], streamer=streamer)


def test_a_generation_config_is_honoured(model: Draftless) -> None:
    ids = model.encode(PROMPTS[0])
    config = GenerationConfig(max_length=len(ids) + 5, do_sample=True, top_k=3)
    output = model.generate(ids, config, seed=9)
    expected = model.generate(ids, max_new_tokens=5, temperature=1.0, top_k=3, seed=9)
    assert output.token_ids == expected.token_ids


@pytest.mark.parametrize("given", [{}, {"repetition_penalty": 1.0}, {"max_length": 30}], ids=str)
def test_unset_fields_of_a_generation_config_are_the_models_own(
    model: Draftless, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    own = model.target.model.generation_config
    monkeypatch.setattr(own, "repetition_penalty", 1.6)
    monkeypatch.setattr(own, "suppress_tokens", [7])
    monkeypatch.setattr(
        own, "cache_implementation", "hybrid"
    )  # as Gemma's; it says nothing of texts
    ids = model.encode(PROMPTS[2])
    config = GenerationConfig(**{"max_new_tokens": 20, **given})
    if "max_length" in given:
        config.max_new_tokens = None
    expected = model.target.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=config
    )
    assert (
        model.generate(ids, config, ignore_eos=False).token_ids == expected[0, len(ids) :].tolist()
    )


def test_none_is_an_empty_list_of_options() -> None:
    assert SamplingParams(stop=None, bad_words_ids=None) == SamplingParams()  # type: ignore[arg-type]


def test_no_seed_draws_one_and_returns_it(model: Draftless) -> None:
    first, second = (model.generate(PROMPTS[0], temperature=1.0) for _ in range(2))
    assert first.seed != second.seed
    again = model.generate(PROMPTS[0], temperature=1.0, seed=first.seed)
    assert again.token_ids == first.token_ids


def test_samples_of_one_seed_differ_by_index(model: Draftless) -> None:
    each = [SamplingParams(temperature=1.0, seed=3, sample_index=i) for i in range(3)]
    outputs = model.generate([PROMPTS[0]] * 3, each)
    assert len({tuple(o.token_ids) for o in outputs}) == 3


def test_generation_leaves_the_global_random_state_alone(model: Draftless) -> None:
    before = torch.random.get_rng_state()
    model.generate(PROMPTS[0], temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_drafter_shares_the_weights(model: Draftless) -> None:
    plain = model.with_drafter("none")
    assert plain.target is model.target
    assert plain.generate(PROMPTS[0]).stats.acceptance_length == 1.0


def test_your_own_drafter(model: Draftless) -> None:
    class Twice:
        """Proposes the last token again."""

        def reset(self, row: object) -> None: ...
        def observe(self, records: object) -> None: ...
        def propose(self, rows: list, _: object) -> list[DraftTree]:
            return [DraftTree.chain([row.token_ids[-1]] * 2) for row in rows]

    mine = model.with_drafter(Twice())
    assert mine.generate(PROMPTS[0]).token_ids == model.generate(PROMPTS[0]).token_ids


def test_the_manifest_chooses_drafter_and_prompt_format(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    methods = {"tr-jacobi": {"noise_length": 5, "noise_source": "vocabulary"}}
    write_manifest(tmp_path, Manifest(methods, "tr-jacobi", PromptFormat(suffix="?")))
    trained = Draftless.from_pretrained(tmp_path)
    assert type(trained.drafter).__name__ == "TRJacobiDrafter"
    assert trained.drafter._noise.source == "vocabulary"
    assert trained.encode("the") == [0, *small_tokenizer().encode("the?")]
    assert read_manifest(tmp_path) == trained.manifest
    untrained = Draftless.from_pretrained(checkpoint)
    assert type(untrained.drafter).__name__ == "AutoDrafter"


def test_a_checkpoint_with_adaptive_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """Its manifest gives the drafter ids and length, and the target what is never emitted."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = Draftless.from_pretrained(checkpoint, drafter="none")
    assert "sdsat" not in plain.drafters
    with pytest.raises(ConfigError, match="draftless train sdsat"):
        plain.with_drafter("sdsat")
    text = plain.generate(PROMPTS[0], max_new_tokens=30).token_ids
    adaptive = [text[3], 9]  # of all ids one that it would emit
    methods = {"sdsat": {"adaptive_ids": adaptive, "block_length": 3, "placement": "shared"}}
    write_manifest(tmp_path, Manifest(methods, "sdsat"))
    trained = Draftless.from_pretrained(tmp_path)
    assert trained.target.input_only_ids == tuple(adaptive)
    assert "sdsat" in trained.drafters
    assert isinstance(trained.drafter, SDSATDrafter)
    assert (trained.drafter._adaptive_ids, trained.drafter._k) == (tuple(adaptive), 3)
    output = trained.generate(PROMPTS[0], max_new_tokens=30)
    assert set(output.token_ids).isdisjoint(adaptive)
    plainly = trained.with_drafter("none").generate(PROMPTS[0], max_new_tokens=30)
    assert output.token_ids == plainly.token_ids
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    again = Draftless.from_pretrained(
        loaded, tokenizer=trained.tokenizer, drafter="none", input_only_ids=adaptive
    )
    assert again.generate(PROMPTS[0], max_new_tokens=30).token_ids == output.token_ids
    chunks = list(trained.stream(PROMPTS[0], max_new_tokens=9))
    assert chunks[0].num_nodes == 1 + 3
    assert chunks[0].num_draft_tokens == 0


@pytest.mark.parametrize("ids", [7, "7", [7.0], [True], [[7]]])
def test_adaptive_ids_that_are_none_are_refused(
    checkpoint: Path, tmp_path: Path, ids: object
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_manifest(tmp_path, Manifest({"sdsat": {"adaptive_ids": ids}}))
    with pytest.raises(ArtifactError, match="adaptive_ids of sdsat"):
        Draftless.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format_version": 99}', '{"format_version": 1, "extra": 0}']
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "draftless.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"draftless\.json"):
        read_manifest(tmp_path)


def test_chat_messages_need_a_template(model: Draftless) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    with pytest.raises(InputError, match="no chat template"):
        model.generate(messages)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    try:
        tokenizer.chat_template = TEMPLATE
        assert model.encode(messages) == tokenizer.encode("user: the cat\n")
        assert len(model.generate([messages, messages], max_new_tokens=3)) == 2
    finally:
        tokenizer.chat_template = None


def test_the_context_fills_up_with_a_length_finish(model: Draftless) -> None:
    ids = [5 + i % 50 for i in range(120)]
    output = model.generate(ids, max_new_tokens=50, ignore_eos=True)
    assert (len(output.token_ids), output.finish_reason) == (8, "length")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "empty"),
        ([[]], {}, "empty"),
        ([5, 300], {}, r"300 lies outside the vocabulary 0\.\."),
        ([-1], {}, "-1 lies outside"),
        ([5] * 128, {}, "128 tokens and the model's context is 128"),
        ({"input_ids": [1]}, {}, "not dict"),
        ("the", {"temperature": float("nan")}, "temperature=nan"),
        ("the", {"temprature": 1.0}, "temprature"),
        ("the", {"params": GenerationConfig(num_beams=4)}, "num_beams=4"),
        ("the", {"params": [SamplingParams()] * 2}, "1 prompts but 2 params"),
        ("the", {"params": {"temperature": 1.0}}, "not {'temperature': 1.0}"),
        ([1.5, 2], {}, "1.5, which is no token id"),
        ([5, "the"], {}, "'the', which is no token id"),
        ([[5, 1.0]], {}, "1.0, which is no token id"),
        (["the", 5], {}, "not 5"),
        (torch.tensor([5.7]), {}, "5.6.*, which is no token id"),
        (7, {}, "not int"),
    ],
)
def test_bad_input_gets_its_own_error(
    model: Draftless, prompt: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DraftlessError, match=message):
        model.generate(prompt, **options)  # type: ignore[call-overload]


def test_ids_may_be_of_any_integer_type(model: Draftless) -> None:
    ids = model.encode(PROMPTS[0])
    expected = model.generate(ids, max_new_tokens=3).token_ids
    assert model.generate(list(np.array(ids)), max_new_tokens=3).token_ids == expected
    assert (
        model.generate(torch.tensor(ids, dtype=torch.int32), max_new_tokens=3).token_ids == expected
    )


def test_what_can_be_refused_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known are none, auto, prompt-lookup"):
        Draftless.from_pretrained(tmp_path, drafter="medusa")
    with pytest.raises(ConfigError, match="max_width='3' of auto"):
        Draftless.from_pretrained(tmp_path, drafter="auto", drafter_options={"max_width": "3"})
    with pytest.raises(ConfigError, match="device 'warp' is not there"):
        Draftless.from_pretrained(tmp_path, device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' is not there"):
            Draftless.from_pretrained(tmp_path, device="cuda")
    with pytest.raises(ArtifactError, match=r"there is no folder '\./missing'"):
        Draftless.from_pretrained("./missing")


def test_bad_loading_gets_its_own_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known are none, auto, prompt-lookup"):
        Draftless.from_pretrained(checkpoint, drafter="medusa")
    with pytest.raises(ConfigError, match="no option width"):
        Draftless.from_pretrained(checkpoint, drafter="none", drafter_options={"width": 3})
    with pytest.raises(ArtifactError, match="cannot load a model"):
        Draftless.from_pretrained(tmp_path)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ArtifactError, match="cannot load a model"):
        Draftless.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="text needs a tokenizer"):
        Draftless.from_pretrained(
            LlamaForCausalLM.from_pretrained(checkpoint), drafter="none"
        ).generate("the")
