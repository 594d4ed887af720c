"""`GenerationConfig` to `SamplingParams`: every field is honoured exactly or refused by name."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from draftless.errors import ConfigError
from draftless.params import SamplingParams

_SAME_NAME = (
    "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
    "remove_invalid_values", "renormalize_logits",
)  # fmt: skip

_ZERO_IS_OFF = ("epsilon_cutoff", "eta_cutoff")

# Without effect on the ids that decoding returns, or ours by construction.
_NO_EFFECT = {
    "use_cache", "cache_config", "max_cache_len", "disable_compile", "compile_config",
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "is_assistant", "early_stopping",
    "length_penalty", "diversity_penalty", "low_memory", "return_dict_in_generate",
    "prefill_chunk_size", "continuous_batching_config", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
    "assistant_lookbehind", "target_lookbehind", "transformers_version",
}  # fmt: skip

# Value (or values) under which the field changes nothing; anything else is refused, with a way out.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), "beam search has no exact draft; use sampling or greedy"),
    "num_beam_groups": ((None, 1), "beam search has no exact draft; use sampling or greedy"),
    "num_return_sequences": (
        (None, 1),
        "give the prompt several times, with sample_index 0, 1, ...",
    ),
    "use_mtp": ((None, False), "use a Draftless drafter instead"),
    "prompt_lookup_num_tokens": ((None,), "use drafter='prompt-lookup'"),
    "assistant_early_exit": ((None,), "use a Draftless drafter instead"),
    "assistant_ensemble_weight": ((None,), "it is lossy; leave it out"),
    "speculation_type": ((None,), "use a Draftless drafter instead"),
    "guidance_scale": ((None, 1, 1.0), "it needs a second forward; leave it out"),
    "encoder_repetition_penalty": ((None, 1, 1.0), "for encoder-decoders; use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((None, 0), "for encoder-decoders; use no_repeat_ngram_size"),
    "token_healing": ((None, False), "heal the prompt before you pass it"),
    "watermarking_config": ((None,), "pass its processor in logits_processors"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search is not offered"),
    "dola_layers": ((None,), "DoLa is not offered"),
    "constraints": ((None,), "constrained beam search is not offered; use logits_processors"),
    "force_words_ids": ((None,), "constrained beam search is not offered; use logits_processors"),
    "output_attentions": ((None, False), "attention weights are not kept"),
    "output_hidden_states": ((None, False), "hidden states are not kept"),
    "output_scores": ((None, False), "scores are not kept"),
    "output_logits": ((None, False), "logits are not kept"),
    "cache_implementation": ((None, "dynamic"), "the cache is ours; leave it out"),
}


def params_from_generation_config(
    config: GenerationConfig,
    prompt_len: int,
    of_model: GenerationConfig | None = None,
    **overrides: Any,
) -> SamplingParams:
    """The same request in our terms.

    Args:
        config: as `transformers.generate` takes it.
        prompt_len: tokens of the prompt, for `max_length` and `min_length`.
        of_model: the model's own, which gives the fields that are not set in `config`, as in `generate`;
            what neither sets has `generate`'s defaults.
        **overrides: fields of `SamplingParams` that replace what the config says (a seed, ...).

    Raises:
        ConfigError: names the field that cannot be honoured and the way out.
    """
    values = _set_fields(config)
    if of_model is not None:
        # Of the model's, what it adds to the known fields is for code of its own. Caches are ours; what it
        # wants of one says nothing about its output.
        wanted = vars(GenerationConfig()).keys() - {"cache_implementation"}
        own = {name: value for name, value in _set_fields(of_model).items() if name in wanted}
        values = {**own, **values}
    for name, (harmless, way_out) in _REFUSED.items():
        value = values.pop(name, None)
        if not any(value is h or (value == h and type(value) is type(h)) for h in harmless):
            raise ConfigError(f"{name}={value!r} is not supported: {way_out}")
    result: dict[str, Any] = {}
    for name in _SAME_NAME:
        value = values.pop(name, None)
        if value is not None and not (value == 0 and name in _ZERO_IS_OFF):
            result[name] = value
    result.update(_lengths(values, prompt_len, overrides.get("max_new_tokens")))
    result.update(_sampling(values))
    for theirs, ours in (
        ("stop_strings", "stop"),
        ("max_time", "max_time_s"),
        ("eos_token_id", "eos_token_ids"),
    ):
        value = values.pop(theirs, None)
        if value is not None:
            result[ours] = value
    bias = values.pop("sequence_bias", None)
    if bias is not None:
        pairs = bias.items() if isinstance(bias, dict) else bias
        result["sequence_bias"] = [(tuple(ids), value) for ids, value in pairs]
    unknown = sorted(values.keys() - _NO_EFFECT)
    if unknown:
        raise ConfigError(
            f"generation config fields {', '.join(unknown)} are not known to Draftless"
        )
    return SamplingParams(**{**result, **overrides})


def _set_fields(config: GenerationConfig) -> dict[str, Any]:
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and v is not None}


def _lengths(values: dict[str, Any], prompt_len: int, given: int | None) -> dict[str, Any]:
    new, total = values.pop("max_new_tokens", None), values.pop("max_length", None)
    new = new if given is None else given
    least_new, least = values.pop("min_new_tokens", None), values.pop("min_length", None)
    if new is None:
        # transformers' default is max_length=20, prompt not counted where none is given.
        new = 20 if total is None else total - prompt_len
    if new < 1:
        raise ConfigError(
            f"max_length={total} leaves no room after a prompt of {prompt_len} tokens"
        )
    # As in `transformers`, a shorter `max_new_tokens` wins over `min_length`.
    floor = max(least_new or 0, min((least or 0) - prompt_len, new))
    return {"max_new_tokens": new, "min_new_tokens": floor}


def _sampling(values: dict[str, Any]) -> dict[str, Any]:
    """Temperature, top-k and top-p; without `do_sample` they are idle, as in `transformers`."""
    do_sample = values.pop("do_sample", None)
    temperature, top_k, top_p = (values.pop(k, None) for k in ("temperature", "top_k", "top_p"))
    if not do_sample:
        return {"temperature": 0.0}
    if temperature == 0:
        raise ConfigError("temperature=0 with do_sample=True; use do_sample=False for greedy")
    return {
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 50 if top_k is None else top_k,
        "top_p": 1.0 if top_p is None else top_p,
    }
