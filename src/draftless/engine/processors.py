"""The prefix-dependent logits processors and rare warpers, as `transformers`' own objects.

Order and conditions are those of `GenerationMixin._get_logits_processor`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from draftless.params import SamplingParams


def make_processors(
    params: SamplingParams, prompt_len: int, eos_token_ids: Sequence[int], device: torch.device
) -> LogitsProcessorList:
    """Everything that runs before the warpers, greedy or sampled."""
    eos = torch.tensor(list(eos_token_ids), device=device) if eos_token_ids else None
    found = LogitsProcessorList()
    if params.sequence_bias:
        bias = [[list(ids), float(value)] for ids, value in params.sequence_bias]
        found.append(hf.SequenceBiasLogitsProcessor(sequence_bias=bias))
    if params.repetition_penalty != 1.0:
        found.append(hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.no_repeat_ngram_size:
        found.append(hf.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    if params.bad_words_ids:
        words = [list(ids) for ids in params.bad_words_ids]
        found.append(hf.NoBadWordsLogitsProcessor(words, eos))
    if params.min_new_tokens and eos is not None:
        found.append(
            hf.MinNewTokensLengthLogitsProcessor(
                prompt_len, params.min_new_tokens, eos, device=str(device)
            )
        )
    if params.prefix_allowed_tokens_fn is not None:
        found.append(hf.PrefixConstrainedLogitsProcessor(params.prefix_allowed_tokens_fn, 1))
    if params.forced_bos_token_id is not None:
        found.append(hf.ForcedBOSTokenLogitsProcessor(params.forced_bos_token_id))
    if params.forced_eos_token_id is not None:
        max_length = prompt_len + params.max_new_tokens
        found.append(
            hf.ForcedEOSTokenLogitsProcessor(
                max_length, params.forced_eos_token_id, device=str(device)
            )
        )
    if params.remove_invalid_values:
        found.append(hf.InfNanRemoveLogitsProcessor())
    if params.exponential_decay_length_penalty is not None and eos is not None:
        found.append(
            hf.ExponentialDecayLengthPenalty(
                params.exponential_decay_length_penalty, eos, prompt_len
            )
        )
    if params.suppress_tokens:
        found.append(
            hf.SuppressTokensLogitsProcessor(list(params.suppress_tokens), device=str(device))
        )
    if params.begin_suppress_tokens:
        begin = prompt_len
        if prompt_len == 1 and params.forced_bos_token_id is not None:
            begin += 1
        found.append(
            hf.SuppressTokensAtBeginLogitsProcessor(
                list(params.begin_suppress_tokens), begin, device=str(device)
            )
        )
    found.extend(params.logits_processors)
    return found


def make_rare_warpers(params: SamplingParams, device: torch.device) -> LogitsProcessorList:
    """All warpers of a request that uses a rare one (`SamplingParams.has_rare_warpers`)."""
    found = LogitsProcessorList()
    if params.temperature != 1.0:
        found.append(hf.TemperatureLogitsWarper(params.temperature))
    if params.top_h is not None:
        found.append(hf.TopHLogitsWarper(top_h=params.top_h))
    if params.top_k:
        found.append(hf.TopKLogitsWarper(top_k=params.top_k))
    if params.top_p < 1.0:
        found.append(hf.TopPLogitsWarper(top_p=params.top_p))
    if params.min_p:
        found.append(hf.MinPLogitsWarper(min_p=params.min_p))
    if params.typical_p is not None and params.typical_p < 1.0:
        found.append(hf.TypicalLogitsWarper(mass=params.typical_p))
    if params.epsilon_cutoff is not None:
        found.append(hf.EpsilonLogitsWarper(epsilon=params.epsilon_cutoff))
    if params.eta_cutoff is not None:
        found.append(hf.EtaLogitsWarper(epsilon=params.eta_cutoff, device=str(device)))
    if params.renormalize_logits:
        found.append(hf.LogitNormalization())
    return found
