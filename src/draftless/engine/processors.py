"""The prefix-dependent logits processors and rare warpers, as `transformers`' own objects.

Order and conditions are those of `GenerationMixin._get_logits_processor`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

from draftless.errors import ConfigError
from draftless.params import SamplingParams


def check_token_ids(
    params: SamplingParams, vocab_size: int, input_only_ids: Collection[int] = ()
) -> None:
    """Refuse ids that the model does not have or does not emit, before any work.

    Raises:
        ConfigError: an option names an id outside `0 .. vocab_size-1`, or forces an id that is
            input only.
    """
    bos, eos = params.forced_bos_token_id, params.forced_eos_token_id
    forced: dict[str, Sequence[int]] = {
        "forced_bos_token_id": () if bos is None else (bos,),
        "forced_eos_token_id": () if eos is None else (eos,) if isinstance(eos, int) else eos,
    }
    named: dict[str, Sequence[int]] = {
        "bad_words_ids": [i for ids in params.bad_words_ids for i in ids],
        "sequence_bias": [i for ids, _ in params.sequence_bias for i in ids],
        "suppress_tokens": params.suppress_tokens,
        "begin_suppress_tokens": params.begin_suppress_tokens,
        "eos_token_ids": params.eos_token_ids or (),  # type: ignore[dict-item] # a tuple by now
        **forced,
    }
    for name, ids in named.items():
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"{name} holds token id {token_id}, outside the vocabulary 0..{vocab_size - 1}"
                )
            if name in forced and token_id in input_only_ids:
                raise ConfigError(f"{name}={token_id} is an adaptive token, which is never emitted")


def make_processors(
    params: SamplingParams, prompt_len: int, eos_token_ids: Sequence[int], device: torch.device
) -> LogitsProcessorList:
    """Everything that runs before the warpers, greedy or sampled."""
    eos = torch.tensor(list(eos_token_ids), device=device) if eos_token_ids else None
    return LogitsProcessorList(
        [
            *_about_the_text(params, eos),
            *_about_the_place(params, prompt_len, eos, str(device)),
            *params.logits_processors,
        ]
    )


def _about_the_text(params: SamplingParams, eos: torch.Tensor | None) -> Iterator[LogitsProcessor]:
    if params.sequence_bias:
        bias = [[list(ids), float(value)] for ids, value in params.sequence_bias]
        yield hf.SequenceBiasLogitsProcessor(sequence_bias=bias)
    if params.repetition_penalty != 1.0:
        yield hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
    if params.no_repeat_ngram_size:
        yield hf.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)
    if params.bad_words_ids:
        words = [list(ids) for ids in params.bad_words_ids]
        yield hf.NoBadWordsLogitsProcessor(words, eos)


def _about_the_place(
    params: SamplingParams, prompt_len: int, eos: torch.Tensor | None, device: str
) -> Iterator[LogitsProcessor]:
    if params.min_new_tokens and eos is not None:
        least = params.min_new_tokens
        yield hf.MinNewTokensLengthLogitsProcessor(prompt_len, least, eos, device=device)
    if params.prefix_allowed_tokens_fn is not None:
        yield hf.PrefixConstrainedLogitsProcessor(params.prefix_allowed_tokens_fn, 1)
    if params.forced_bos_token_id is not None:
        yield hf.ForcedBOSTokenLogitsProcessor(params.forced_bos_token_id)
    if params.forced_eos_token_id is not None:
        end = prompt_len + params.max_new_tokens
        eos_ids = params.forced_eos_token_id
        eos_ids = eos_ids if isinstance(eos_ids, int) else list(eos_ids)
        yield hf.ForcedEOSTokenLogitsProcessor(end, eos_ids, device=device)
    if params.remove_invalid_values:
        yield hf.InfNanRemoveLogitsProcessor()
    if params.exponential_decay_length_penalty is not None and eos is not None:
        decay = params.exponential_decay_length_penalty
        yield hf.ExponentialDecayLengthPenalty(decay, eos, prompt_len)
    if params.suppress_tokens:
        yield hf.SuppressTokensLogitsProcessor(list(params.suppress_tokens), device=device)
    if params.begin_suppress_tokens:
        # A forced BOS takes the first place after a one-token prompt.
        begin = prompt_len + (prompt_len == 1 and params.forced_bos_token_id is not None)
        ids = list(params.begin_suppress_tokens)
        yield hf.SuppressTokensAtBeginLogitsProcessor(ids, begin, device=device)


def make_rare_warpers(params: SamplingParams, device: torch.device) -> LogitsProcessorList:
    """All warpers of a request that uses a rare one (`SamplingParams.has_rare_warpers`)."""
    return LogitsProcessorList([*_common_warpers(params), *_rare_warpers(params, str(device))])


def _common_warpers(params: SamplingParams) -> Iterator[LogitsProcessor]:
    if params.temperature != 1.0:
        yield hf.TemperatureLogitsWarper(float(params.temperature))
    if params.top_h is not None:
        yield hf.TopHLogitsWarper(top_h=params.top_h)
    if params.top_k:
        yield hf.TopKLogitsWarper(top_k=params.top_k)
    if params.top_p < 1.0:
        yield hf.TopPLogitsWarper(top_p=params.top_p)
    if params.min_p:
        yield hf.MinPLogitsWarper(min_p=params.min_p)


def _rare_warpers(params: SamplingParams, device: str) -> Iterator[LogitsProcessor]:
    if params.typical_p is not None and params.typical_p < 1.0:
        yield hf.TypicalLogitsWarper(mass=params.typical_p)
    if params.epsilon_cutoff is not None:
        yield hf.EpsilonLogitsWarper(epsilon=params.epsilon_cutoff)
    if params.eta_cutoff is not None:
        yield hf.EtaLogitsWarper(epsilon=params.eta_cutoff, device=device)
    if params.renormalize_logits:
        yield hf.LogitNormalization()
