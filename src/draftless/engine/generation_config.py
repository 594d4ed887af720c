"""`GenerationConfig` and the keywords of `transformers`' `generate` to `SamplingParams`.

Every field is honoured exactly or refused by name. The rule for the checkpoint's own generation
config: only its EOS ids count, unless the request asks for more with a `GenerationConfig`, with
`do_sample` (either value) or with `use_model_defaults=True`. Then it gives what the request leaves
unset, as in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeAlias

from transformers import GenerationConfig

from draftless.errors import ConfigError
from draftless.params import SamplingParams

Params: TypeAlias = "SamplingParams | GenerationConfig"

_SAME_NAME = (
    "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
    "remove_invalid_values", "renormalize_logits",
)  # fmt: skip

_ZERO_IS_OFF = ("epsilon_cutoff", "eta_cutoff")

# Without effect on the ids that decoding returns, or ours by construction.
_NO_EFFECT = {
    "cache_config", "max_cache_len", "disable_compile", "compile_config",
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
    "use_cache": ((None, True), "the ids are the same with a cache; leave it out"),
    "assistant_model": ((None,), "use a Draftless drafter instead"),
    "custom_generate": ((None,), "use a Draftless drafter or logits_processors"),
    "synced_gpus": ((None, False), "the model must be on one device"),
    "inputs_embeds": ((None,), "give token ids"),
    "position_ids": ((None,), "positions follow from the attention_mask"),
    "past_key_values": ((None,), "the cache is ours; give the whole prompt"),
    "negative_prompt_ids": ((None,), "it needs a second forward; leave it out"),
    "negative_prompt_attention_mask": ((None,), "it needs a second forward; leave it out"),
    "tools": ((None,), "use chat() or encode_chat()"),
    "chat_template_kwargs": ((None,), "use chat() or encode_chat()"),
}

_OF_CACHES = {"cache_implementation", "use_cache"}  # of a model's own config they say nothing

_OTHER_WORDS = {"stop_strings": "stop", "max_time": "max_time_s", "eos_token_id": "eos_token_ids",
                "logits_processor": "logits_processors"}  # fmt: skip


def resolve_params(
    params: Params | None,
    options: Mapping[str, Any],
    prompt_len: int,
    of_model: GenerationConfig,
) -> SamplingParams:
    """The request of a call in our terms.

    Args:
        params: what was given in one piece.
        options: keywords beside it: fields of `SamplingParams`, what `transformers`' `generate` takes
            (also `generation_config`), and `use_model_defaults`. None leaves an option as it is.
        prompt_len: tokens of the prompt, from which `max_length` and `min_length` count.
        of_model: the checkpoint's own generation config.

    Raises:
        ConfigError: names the option that is unknown or cannot be honoured, and the way out.
    """
    options = dict(options)
    config = options.pop("generation_config", None)
    if config is not None and params is not None:
        raise ConfigError("give one of params and generation_config")
    params = config if params is None else params
    if not isinstance(params, SamplingParams | GenerationConfig | None):
        raise ConfigError(f"params are SamplingParams or a GenerationConfig, not {params!r}")
    ours, theirs = _split(options)
    use_model_defaults = theirs.pop("use_model_defaults", False)
    does_sample = bool(theirs["do_sample"]) if "do_sample" in theirs else None
    if does_sample is False:
        ours.pop("temperature", None)  # idle then, as in `transformers`
    if does_sample and ours.get("temperature") == 0:
        raise ConfigError(_CONTRADICTION)
    if isinstance(params, GenerationConfig):
        values = {**_own(of_model), **_set_fields(params), **theirs}
        return _as_transformers(values, prompt_len, ours)
    if params is not None and (use_model_defaults or "do_sample" in theirs):
        name = "use_model_defaults" if use_model_defaults else "do_sample"
        raise ConfigError(f"{name} goes with options as keywords, not with SamplingParams")
    base = params or SamplingParams()
    if not theirs and not use_model_defaults:
        return replace(base, **ours)
    asks_model = use_model_defaults or does_sample is not None
    values = {**_own(of_model), **theirs} if asks_model else theirs
    return replace(base, **{**_converted(values, prompt_len, base, ours), **ours})


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
    values = {**(_own(of_model) if of_model is not None else {}), **_set_fields(config)}
    return _as_transformers(values, prompt_len, overrides)


def _as_transformers(
    values: dict[str, Any], prompt_len: int, ours: Mapping[str, Any]
) -> SamplingParams:
    values.setdefault("do_sample", False)
    # transformers' default is max_length=20, prompt not counted where none is given.
    base = SamplingParams(max_new_tokens=20)
    return replace(base, **{**_converted(values, prompt_len, base, ours), **ours})


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of ours, and those that only `transformers` has."""
    fields = SamplingParams.__dataclass_fields__
    known = {*_set_names(), *_REFUSED, *_OTHER_WORDS, "use_model_defaults"}
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for name, value in options.items():
        if name in fields:
            if value is not None or fields[name].default is None:
                ours[name] = value
        elif name in known:
            if value is not None:
                theirs[name] = value
        else:
            near = get_close_matches(name, [*fields, *known], 1)
            hint = f"did you mean {near[0]}?" if near else "see SamplingParams for those there are"
            raise ConfigError(f"unknown option {name}; {hint}")
    return ours, theirs


@cache
def _set_names() -> frozenset[str]:
    return frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def _own(of_model: GenerationConfig) -> dict[str, Any]:
    """What a checkpoint's config says of the output.

    What it adds to the known fields is for code of its own. Caches are ours; what it wants of one says
    nothing about its output.
    """
    wanted = _set_names() - _OF_CACHES
    return {name: value for name, value in _set_fields(of_model).items() if name in wanted}


def _converted(
    values: Mapping[str, Any], prompt_len: int, base: SamplingParams, ours: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of `SamplingParams` for values of a `GenerationConfig`; `ours` say more."""
    values = dict(values)
    for name, (harmless, way_out) in _REFUSED.items():
        value = values.pop(name, None)
        if not any(value is h or (value == h and type(value) is type(h)) for h in harmless):
            raise ConfigError(f"{name}={value!r} is not supported: {way_out}")
    result: dict[str, Any] = {}
    for name in _SAME_NAME:
        value = values.pop(name, None)
        if value is not None and not (value == 0 and name in _ZERO_IS_OFF):
            result[name] = value
    result.update(_lengths(values, prompt_len, ours.get("max_new_tokens"), base.max_new_tokens))
    result.update(_sampling(values))
    for theirs, name in _OTHER_WORDS.items():
        value = values.pop(theirs, None)
        if value is not None:
            result[name] = value
    bias = values.pop("sequence_bias", None)
    if bias is not None:
        pairs = bias.items() if isinstance(bias, dict) else bias
        result["sequence_bias"] = [(tuple(ids), value) for ids, value in pairs]
    unknown = sorted(values.keys() - _NO_EFFECT)
    if unknown:
        raise ConfigError(
            f"generation config fields {', '.join(unknown)} are not known to Draftless"
        )
    return result


def _set_fields(config: GenerationConfig) -> dict[str, Any]:
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and v is not None}


def _lengths(
    values: dict[str, Any], prompt_len: int, given: int | None, default: int
) -> dict[str, Any]:
    new, total = values.pop("max_new_tokens", None), values.pop("max_length", None)
    new = new if given is None else given
    least_new, least = values.pop("min_new_tokens", None), values.pop("min_length", None)
    if new is None:
        new = default if total is None else total - prompt_len
    if new < 1:
        raise ConfigError(
            f"max_length={total} leaves no room after a prompt of {prompt_len} tokens"
        )
    found = {"max_new_tokens": new}
    if least_new is not None:  # wins over `min_length`, as in `transformers`
        found["min_new_tokens"] = least_new
    elif least is not None:
        # As in `transformers`, a shorter `max_new_tokens` wins.
        found["min_new_tokens"] = max(0, min(least - prompt_len, new))
    return found


def _sampling(values: dict[str, Any]) -> dict[str, Any]:
    """Temperature, top-k and top-p; without `do_sample` they are idle, as in `transformers`."""
    do_sample = values.pop("do_sample", None)
    temperature, top_k, top_p = (values.pop(k, None) for k in ("temperature", "top_k", "top_p"))
    if not do_sample:
        return {} if do_sample is None else {"temperature": 0.0}
    if temperature == 0:
        raise ConfigError(_CONTRADICTION)
    return {
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 50 if top_k is None else top_k,
        "top_p": 1.0 if top_p is None else top_p,
    }


_CONTRADICTION = "temperature=0 with do_sample=True; use do_sample=False for greedy"
