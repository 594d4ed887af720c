"""`SamplingParams`: every option of a request, frozen and validated once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from draftless.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessor, StoppingCriteria


LEAST_TEMPERATURE = 1e-6
"""But for 0, which is greedy."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is decoded. Names and meanings follow `transformers` where it has them.

    Numbers may be NumPy scalars; lists may be any collection, or None where there is none.

    Attributes:
        max_new_tokens: most tokens to generate.
        min_new_tokens: no EOS before this many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this mass; 1 keeps all.
        min_p: drop tokens below this share of the most likely one's probability.
        top_h, typical_p, epsilon_cutoff, eta_cutoff: the warpers of `transformers`, None is off.
        repetition_penalty: 1 is off; applies to prompt and output.
        no_repeat_ngram_size: 0 is off.
        bad_words_ids: token sequences that may not be completed.
        sequence_bias: pairs of (token sequence, bias).
        suppress_tokens, begin_suppress_tokens: ids never drawn, never drawn first.
        forced_bos_token_id, forced_eos_token_id: ids forced at the first and the last place; several for the
            last place are equally likely (greedy takes the lowest).
        exponential_decay_length_penalty: (start, factor).
        prefix_allowed_tokens_fn: called with (0, prefix ids) and returns the allowed ids.
        remove_invalid_values, renormalize_logits: as in `transformers`.
        logits_processors: your own `LogitsProcessor`s, run once per emitted token, in order. They must be
            functions of the ids and scores: prompts of a batch share them, step by step.
        stop: strings that end the text, special tokens in them included (`"<|im_end|>"`). They are looked
            for in the answer alone: one that begins in the prompt and ends in the answer does not
            stop (in `transformers` it does).
        include_stop: keep the stop string in `text`.
        eos_token_ids: ids that end the text; None means the model's own.
        ignore_eos: go on after an EOS id.
        stopping_criteria: your own `StoppingCriteria`s, asked after every token.
        max_time_s: seconds after which no further token is emitted.
        seed: seed of the keyed draws; None draws one from the operating system (`torch.manual_seed` has
            no effect).
        sample_index: which of several samples of the same prompt and seed this is.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    sequence_bias: Sequence[tuple[Sequence[int], float]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    logits_processors: Sequence[LogitsProcessor] = ()
    stop: str | Sequence[str] = ()
    include_stop: bool = False
    eos_token_ids: int | Sequence[int] | None = None
    ignore_eos: bool = False
    stopping_criteria: Sequence[StoppingCriteria] = ()
    max_time_s: float | None = None
    seed: int | None = None
    sample_index: int = 0

    def __post_init__(self) -> None:
        self._fill_empty()
        self._unbox()
        self._check_lists()
        self._normalise("stop", str, "str")
        self._normalise("eos_token_ids", Integral, "int")
        self._check_numbers()
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}"
            )
        if any(not s for s in self.stop):
            raise ConfigError("an empty stop string would stop everything; leave it out")
        if any(len(words) == 0 for words in self.bad_words_ids):
            raise ConfigError("bad_words_ids holds an empty sequence; leave it out")

    def _check_numbers(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("min_new_tokens", self.min_new_tokens, 0)
        _whole("top_k", self.top_k, 0)
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        _whole("sample_index", self.sample_index, 0)
        if self.seed is not None:
            _whole("seed", self.seed, None)
        _within("temperature", self.temperature, 0.0, math.inf)
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature} is below {LEAST_TEMPERATURE}, where noise no longer "
                "counts; use 0 for greedy decoding"
            )
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        for name in ("top_h", "typical_p"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0.0, 1.0, open_low=True)
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0.0, 1.0, open_low=True, open_high=True)
        if self.max_time_s is not None:
            _within("max_time_s", self.max_time_s, 0.0, math.inf)

    def _fill_empty(self) -> None:
        """Lists may be given as None, as a GenerationConfig leaves them."""
        for name, default in _DEFAULTS.items():
            if default == () and getattr(self, name) is None:
                object.__setattr__(self, name, ())

    def _unbox(self) -> None:
        """Numbers of NumPy become Python's; flags must be flags."""
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if isinstance(default, bool):
                if not isinstance(value, bool | np.bool_):
                    raise ConfigError(f"{name} must be True or False, got {value!r}")
                object.__setattr__(self, name, bool(value))
            elif isinstance(value, np.integer | np.floating):
                object.__setattr__(self, name, value.item())

    def _check_lists(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if default == () and name != "stop" and not _is_list(value):
                raise ConfigError(f"{name}={value!r} is no list")
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            _ids(name, getattr(self, name))
        for words in self.bad_words_ids:
            _ids("bad_words_ids", words)
        for pair in self.sequence_bias:
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ConfigError(
                    f"sequence_bias holds {pair!r}; each must be a pair ([ids], bias)"
                )
            _ids("sequence_bias", pair[0])
        self._check_forced()
        decay = self.exponential_decay_length_penalty
        if decay is not None and (not isinstance(decay, Sequence) or len(decay) != 2):
            raise ConfigError(f"exponential_decay_length_penalty={decay!r} is no (start, factor)")

    def _check_forced(self) -> None:
        bos = self.forced_bos_token_id
        if bos is not None and (not isinstance(bos, Integral) or isinstance(bos, bool)):
            raise ConfigError(f"forced_bos_token_id must be one token id, got {bos!r}")
        forced = self.forced_eos_token_id
        if forced is not None:
            _ids("forced_eos_token_id", forced if _is_list(forced) else [forced])
            if _is_list(forced):
                ids = tuple(map(int, forced))  # type: ignore[arg-type]
                if not ids:
                    raise ConfigError("forced_eos_token_id holds no id; leave it out")
                object.__setattr__(self, "forced_eos_token_id", ids)

    def _normalise(self, name: str, single: type, kind: str) -> None:
        """Make a tuple of a field that may be given as one value."""
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, single):
            value = (value,)
        elif not _is_list(value):
            raise ConfigError(f"{name}={value!r} is neither of type {kind} nor a list")
        for item in value:
            if not isinstance(item, single) or isinstance(item, bool):
                raise ConfigError(f"{name} holds {item!r}; each must be of type {kind}")
        object.__setattr__(self, name, tuple(value))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def is_truncated(self) -> bool:
        """Whether top-k, top-p or min-p may drop tokens."""
        return bool(self.top_k or self.min_p) or self.top_p < 1.0

    @property
    def has_processors(self) -> bool:
        """Whether logits depend on the prefix: anything that runs before the warpers."""
        return any(getattr(self, name) != _DEFAULTS[name] for name in _PROCESSOR_FIELDS)

    @property
    def has_rare_warpers(self) -> bool:
        """Whether a warper other than temperature, top-k, top-p and min-p is on."""
        rare: list[Any] = [self.top_h, self.typical_p, self.epsilon_cutoff, self.eta_cutoff]
        return any(value is not None for value in rare) or self.renormalize_logits


_PROCESSOR_FIELDS = (
    "min_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "prefix_allowed_tokens_fn",
    "remove_invalid_values",
    "logits_processors",
)
_DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}


def _is_list(value: object) -> bool:
    """Whether it is a list, or as good as one: a tuple, a set, an array."""
    return isinstance(value, Collection) and not isinstance(value, str | Mapping)


def _ids(name: str, ids: object) -> None:
    if not _is_list(ids) or not all(
        isinstance(one, Integral) and not isinstance(one, bool)
        for one in ids  # type: ignore[attr-defined]
    ):
        raise ConfigError(f"{name} holds {ids!r}, which is no list of token ids")


def _whole(name: str, value: object, low: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not an int")
    if low is not None and value < low:
        raise ConfigError(f"{name}={value} is below {low}")


def _within(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not a number")
    above = value > low if open_low else value >= low
    below = value < high if open_high or math.isinf(high) else value <= high
    if not (above and below):  # false for NaN too
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high or math.isinf(high) else ']'}"
        raise ConfigError(f"{name}={value} lies outside {interval}")
