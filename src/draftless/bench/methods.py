"""The methods under measurement: each turns prompt ids and a seed into a `Turn`.

All are timed and counted the same way. Text is decoded after the clock has stopped: a loop that
decodes while it generates pays once per step, which would charge plain decoding more than drafting.
Tokens are counted from ids, cut after the first EOS.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from draftless.bench.rows import Turn
from draftless.engine.stops import TextDecoder
from draftless.errors import ConfigError
from draftless.loops import looping_tokens
from draftless.model import Draftless
from draftless.params import SamplingParams
from draftless.types import Chunk

TRANSFORMERS = "transformers"
PEER_LOOKUP = "transformers prompt-lookup"
PEER_EARLY_EXIT = "transformers early-exit"

# Prompt lookup's own settings in its paper's repository and in `transformers`' documentation.
_LOOKUP = {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3}

_DIGITS = 6  # microseconds: more would only make rows longer

Method = Callable[[Sequence[int], int], Turn]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; one case per sampling.

    Attributes:
        temperature: 0 is greedy.
        top_k, top_p, min_p: as in `SamplingParams`; they need a temperature.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        self.params(1, 0, ())
        if self.is_greedy and (self.top_k or self.top_p < 1.0 or self.min_p):
            raise ConfigError("top-k, top-p and min-p need a temperature above 0")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def name(self) -> str:
        """What a `Case` calls it: `greedy`, `T=1`, `T=0.8 top-p=0.9`."""
        if self.is_greedy:
            return "greedy"
        parts = [f"T={self.temperature:g}"]
        parts += [f"top-k={self.top_k}"] if self.top_k else []
        parts += [f"top-p={self.top_p:g}"] if self.top_p < 1.0 else []
        parts += [f"min-p={self.min_p:g}"] if self.min_p else []
        return " ".join(parts)

    def params(self, max_new_tokens: int, seed: int, eos_ids: Sequence[int]) -> SamplingParams:
        """The same for the engine."""
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed,
            eos_token_ids=tuple(eos_ids),
        )


def our_method(model: Draftless, sampling: Sampling, max_new_tokens: int) -> Method:
    """Our loop with the drafter that `model` carries."""
    # Without a tokenizer the stream hands out ids and decodes nothing: it costs what `generate` does.
    silent = Draftless(model.target, None, model.drafter, model.manifest)
    eos_ids = model.eos_token_ids
    device = model.target.device

    def run(prompt_ids: Sequence[int], seed: int) -> Turn:
        params = sampling.params(max_new_tokens, seed, eos_ids)
        chunks: list[Chunk] = []
        step_s: list[float] = []
        _synchronize(device)
        started = time.perf_counter()
        for chunk in silent.stream(list(prompt_ids), params):
            step_s.append(round(time.perf_counter() - started, _DIGITS))
            chunks.append(chunk)
        _synchronize(device)
        seconds = round(time.perf_counter() - started, _DIGITS)
        output = chunks[-1].output
        assert output is not None
        sources = [source for chunk in chunks for source in chunk.sources]
        return Turn(
            prompt_len=len(prompt_ids),
            token_ids=output.token_ids,
            text=decode_text(model, output.token_ids),
            finish_reason=output.finish_reason,
            seconds=seconds,
            prefill_s=round(output.stats.time_s["prefill"], _DIGITS),
            first_token_s=step_s[0],
            num_forward_passes=output.stats.num_forward_passes,
            step_tokens=[len(chunk.token_ids) for chunk in chunks],
            step_drafted=[chunk.num_draft_tokens for chunk in chunks],
            step_nodes=[chunk.num_nodes for chunk in chunks],
            step_s=step_s,
            num_draft_passes=output.stats.num_draft_passes,
            sources=sources,
            pieces=_pieces(model, output.token_ids) if any(sources) else [],
            time_s={name: round(s, _DIGITS) for name, s in output.stats.time_s.items()},
            num_looping=looping_tokens(output.token_ids),
        )

    return run


def peer_methods(
    model: Draftless, stock: PreTrainedModel, sampling: Sampling, max_new_tokens: int
) -> tuple[dict[str, Method], dict[str, str]]:
    """`transformers`' own loops on the same weights.

    Sampled output differs from ours by design (another source of randomness) and counts for speed
    only.

    Args:
        model: ours; its EOS ids and tokenizer are used.
        stock: the same weights under the stock attention (`stock_copy`).
        sampling: greedy or not.
        max_new_tokens: per turn.

    Returns:
        The methods by name, and of those left out, the reason by name.
    """
    options: dict[str, Mapping[str, Any]] = {TRANSFORMERS: {}, PEER_LOOKUP: _LOOKUP}
    skipped = {}
    reason = "greedy only" if not sampling.is_greedy else why_no_early_exit(stock)
    if reason:
        skipped[PEER_EARLY_EXIT] = reason
    else:
        # The depth that pays is the model's secret; half of the layers, and it is said in the docs.
        half = max(1, stock.config.get_text_config().num_hidden_layers // 2)
        options[PEER_EARLY_EXIT] = {"assistant_early_exit": half}
    methods = {
        name: _Peer(model, stock, _stock_config(model, sampling, max_new_tokens, more))
        for name, more in options.items()
    }
    return dict(methods), skipped


class _Peer:
    """One `generate` call of `transformers`, watched from outside."""

    def __init__(self, model: Draftless, stock: PreTrainedModel, config: GenerationConfig) -> None:
        self._model = model
        self._stock = stock
        self._config = config

    def __call__(self, prompt_ids: Sequence[int], seed: int) -> Turn:
        device = self._stock.device
        ids = torch.tensor([list(prompt_ids)], device=device)
        layers = self._stock.config.get_text_config().num_hidden_layers
        _synchronize(device)
        watch = _Watch(self._stock)
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                watch.start()
                self._stock.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=self._config,
                    streamer=watch,
                )
                _synchronize(device)
                seconds = watch.now()
        finally:
            watch.remove()
            # A failure inside an early exit would leave the model shortened.
            self._stock.config.get_text_config().num_hidden_layers = layers
        return self._turn(len(prompt_ids), watch, seconds)

    def _turn(self, prompt_len: int, watch: _Watch, seconds: float) -> Turn:
        eos_ids = self._model.eos_token_ids
        token_ids: list[int] = []
        step_tokens = []
        for step_ids in watch.steps:
            kept = _until_eos(step_ids, eos_ids)[: self._config.max_new_tokens - len(token_ids)]
            if not kept or (token_ids and token_ids[-1] in eos_ids):
                break
            token_ids += kept
            step_tokens.append(len(kept))
        is_stopped = bool(token_ids) and token_ids[-1] in eos_ids
        return Turn(
            prompt_len=prompt_len,
            token_ids=token_ids,
            text=decode_text(self._model, token_ids),
            finish_reason="stop" if is_stopped else "length",
            seconds=seconds,
            prefill_s=watch.prefill_s,
            first_token_s=watch.step_s[0],
            num_forward_passes=watch.num_passes,
            step_tokens=step_tokens,
            step_drafted=watch.step_drafted[: len(step_tokens)],
            step_s=watch.step_s[: len(step_tokens)],
            num_looping=looping_tokens(token_ids),
        )


class _Watch(BaseStreamer):
    """Sees every forward pass of a model and every token that `generate` commits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.steps: list[list[int]] = []
        self.step_s: list[float] = []
        self.step_drafted: list[int] = []
        self.num_passes = 0
        self.prefill_s: float | None = None
        self._config = model.config.get_text_config()
        self._layers = self._config.num_hidden_layers
        self._drafted = 0
        self._prompt_len: int | None = None
        self._started = 0.0
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def start(self) -> None:
        self._started = time.perf_counter()

    def now(self) -> float:
        return round(time.perf_counter() - self._started, _DIGITS)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def _is_early_exit(self) -> bool:
        """The drafter's passes through the same model, cut short; not passes of the target."""
        return bool(self._config.num_hidden_layers < self._layers)

    def _before(self, _: Any, __: Any, inputs: Mapping[str, Any]) -> None:
        if self._is_early_exit:
            return
        self.num_passes += 1
        ids = inputs.get("input_ids")
        # A verification feeds the root and the drafts; the first pass feeds the prompt as well.
        width = ids.shape[1] if ids is not None else 1
        self._drafted = max(0, width - (self._prompt_len or 1 if self.num_passes == 1 else 1))

    def _after(self, _: Any, __: Any, output: Any) -> None:
        if self.prefill_s is None and not self._is_early_exit:
            _synchronize(output.logits.device)
            self.prefill_s = self.now()

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then the tokens of every step."""
        if self._prompt_len is None:
            self._prompt_len = value.numel()
            return
        self.step_s.append(self.now())
        self.steps.append([int(token_id) for token_id in value.flatten()])
        self.step_drafted.append(self._drafted)

    def end(self) -> None:
        """Nothing to do: the clock stops outside."""


def stock_copy(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model under the attention that `transformers` itself would choose.

    Args:
        model: with any attention; stays as it is.
        dtype: None shares every tensor with `model` and costs no memory; otherwise a copy.
    """
    shared = {} if dtype else {id(t): t for t in (*model.parameters(), *model.buffers())}
    stock: PreTrainedModel = copy.deepcopy(model, shared)
    stock.set_attn_implementation(None)
    stock.generation_config = GenerationConfig()  # a checkpoint's own would fill in penalties
    return stock if dtype is None else stock.to(dtype)


def why_no_early_exit(stock: PreTrainedModel) -> str | None:
    """Why `assistant_early_exit` cannot be used with this model, or None if it can.

    It works by lowering `num_hidden_layers` in the configuration for the draft's passes. Whether a
    model's code looks at that number while it runs is found out by trying.
    """
    config = stock.config.get_text_config()
    layers = config.num_hidden_layers
    if layers < 2:
        return "the model has one layer"
    if getattr(stock, stock.base_model_prefix, stock) is stock:
        return f"{type(stock).__name__} has no base model inside"
    ids = torch.zeros((1, 2), dtype=torch.long, device=stock.device)
    with torch.inference_mode():
        full = stock(ids, use_cache=False).logits
        config.num_hidden_layers = 1
        try:
            short = stock(ids, use_cache=False).logits
        except Exception as error:  # noqa: BLE001 - model code may fail in any way
            return f"{type(stock).__name__} fails with fewer layers: {error}"
        finally:
            config.num_hidden_layers = layers
    if torch.equal(full, short):
        return f"{type(stock).__name__} runs all its layers whatever its configuration says"
    return None


def decode_text(model: Draftless, token_ids: Sequence[int]) -> str:
    """The text of an answer, without special tokens; empty where there is no tokenizer."""
    if model.tokenizer is None:
        return ""
    return str(
        model.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )


def _pieces(model: Draftless, token_ids: Sequence[int]) -> list[str]:
    """The text of every token; "" where a character is not complete yet."""
    if model.tokenizer is None:
        return []
    decoder, last = TextDecoder(model.tokenizer), len(token_ids) - 1
    return [decoder.push([one], is_last=place == last) for place, one in enumerate(token_ids)]


def _stock_config(
    model: Draftless, sampling: Sampling, max_new_tokens: int, more: Mapping[str, Any]
) -> GenerationConfig:
    """All that our loop does, and nothing that a checkpoint's own file would add."""
    eos_ids = list(model.eos_token_ids)
    chosen = (
        {}
        if sampling.is_greedy
        else {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
        }
    )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not sampling.is_greedy,
        eos_token_id=eos_ids or None,
        pad_token_id=eos_ids[0] if eos_ids else 0,
        suppress_tokens=list(model.target.input_only_ids) or None,
        **chosen,
        **more,
    )


def _until_eos(token_ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token_id in enumerate(token_ids) if token_id in eos_ids), len(token_ids))
    return token_ids[: end + 1]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
