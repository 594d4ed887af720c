"""A Draftless model for EleutherAI's `lm-eval`.

    import lm_eval
    from draftless.bench.quality.lm_eval_adapter import DraftlessLM
    lm_eval.simple_evaluate(model=DraftlessLM(model), tasks=["gsm8k"])

Written from the interface that `lm_eval/api/model.py` and `docs/model_guide.md` describe, and tested
against a stand-in of the base class: our tests do not install `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from draftless.bench.quality.loss import token_losses
from draftless.errors import ConfigError, InputError
from draftless.model import Draftless
from draftless.params import SamplingParams

try:
    from lm_eval.api.model import LM  # type: ignore[import-not-found,unused-ignore]
except ImportError as error:
    raise ConfigError("the adapter needs lm-eval: pip install lm-eval") from error

_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the harness for one option; its models take any of them."""
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "early_stopping": False}
"""Options that tasks give with the value that changes nothing."""
_KNOWN = {"until", "do_sample", *_LENGTHS} | _SAMPLING


class DraftlessLM(LM):
    """Answers by drafting; likelihoods by plain forward passes of the target.

    Texts get the special tokens that the tokenizer adds by itself, unless they begin with its BOS
    already, as texts from chat templates do.
    """

    def __init__(self, model: Draftless, batch_size: int = 8, max_gen_toks: int = 256) -> None:
        """Wrap a model.

        Args:
            model: with a tokenizer.
            batch_size: prompts that are answered together.
            max_gen_toks: longest answer where a task does not say.

        Raises:
            ConfigError: the model has no tokenizer, or that has neither BOS nor EOS.
        """
        super().__init__()
        if model.tokenizer is None:
            raise ConfigError("lm-eval works on texts; load the model with its tokenizer")
        self._model = model
        self._tokenizer: Any = model.tokenizer
        self._batch_size = batch_size
        self._max_gen_toks = max_gen_toks
        ids = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        known = [token_id for token_id in ids if token_id is not None]
        if not known:
            raise ConfigError("texts without context need a BOS or EOS token; there is none")
        self._prefix_id = known[0]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts of requests with `args` (context, options), without their stop strings.

        A context that leaves no room for the longest answer loses its beginning, as in the harness.

        Raises:
            ConfigError: an option is unknown, or the longest answer fills the model's context.
        """
        texts = []
        for start in range(0, len(requests), self._batch_size):
            batch = requests[start : start + self._batch_size]
            params = [self._params(request.args[1]) for request in batch]
            prompts = [
                self._with_room(self._encode(request.args[0]), one.max_new_tokens)
                for request, one in zip(batch, params, strict=True)
            ]
            outputs = self._model.generate(prompts, params)
            for request, output in zip(batch, outputs, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, output.text)
                texts.append(output.text)
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For `args` (context, continuation): its log-probability, and whether it is greedy."""
        results = []
        for request in requests:
            context, continuation = self._encode_pair(*request.args)
            ids = (context + continuation)[-self._window(context + continuation) :]
            if len(continuation) >= len(ids):
                raise InputError(
                    f"a continuation of {len(continuation)} tokens does not fit the model's context"
                )
            losses, greedy = token_losses(self._model.target, ids, len(ids) - len(continuation))
            result = (-float(losses.sum()), bool(greedy.all()))
            self.cache_hook.add_partial("loglikelihood", request.args, result)
            results.append(result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """For `args` (text,): its log-probability, each token once, with all context there is."""
        results = []
        for request in requests:
            ids = [
                self._prefix_id,
                *self._tokenizer.encode(request.args[0], add_special_tokens=False),
            ]
            limit, total, start = self._window(ids), 0.0, 1
            while start < len(ids):
                # The first window is judged but for its first token, a later one where it is new.
                end = min(len(ids), limit if start == 1 else start + limit - 1)
                begin = max(0, end - limit)
                losses, _ = token_losses(self._model.target, ids[begin:end], start - begin)
                total, start = total - float(losses.sum()), end
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer; lm-eval tells caches apart by it."""
        return str(self._tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that `apply_chat_template` uses."""
        if isinstance(chat_template, str):
            raise ConfigError("only the tokenizer's default chat template can be used")
        return str(self._tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Text of chat messages; without a generation prompt the last message can be continued."""
        return str(
            self._tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _encode(self, text: str) -> list[int]:
        bos = self._tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)
        return list(self._tokenizer(text, add_special_tokens=not has_bos).input_ids)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a text in two parts; spaces at the border belong to the continuation."""
        end = len(context.rstrip())
        context, continuation = context[:end], context[end:] + continuation
        if not context:
            return [self._prefix_id], list(
                self._tokenizer.encode(continuation, add_special_tokens=False)
            )
        before = self._encode(context)
        return before, self._encode(context + continuation)[len(before) :]

    def _window(self, ids: Sequence[int]) -> int:
        """Most ids of one forward pass; the last one is only predicted."""
        limit = self._model.target.max_positions
        return len(ids) if limit is None else limit + 1

    def _with_room(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """The end of a prompt that leaves room for the longest answer."""
        ids = ids or [self._prefix_id]
        limit = self._model.target.max_positions
        if limit is None:
            return ids
        if max_new_tokens >= limit:
            raise ConfigError(
                f"max_gen_toks={max_new_tokens} must be below the model's context of {limit} tokens"
            )
        return ids[-(limit - max_new_tokens) :]

    def _params(self, options: Mapping[str, Any]) -> SamplingParams:
        options = {
            name: value
            for name, value in options.items()
            if name not in _NEUTRAL or value != _NEUTRAL[name]
        }
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise ConfigError(
                f"generation options {unknown} are unknown; known are {sorted(_KNOWN)}"
            )
        until = options.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        sampling = {name: options[name] for name in _SAMPLING & set(options)}
        if options.get("do_sample", sampling.get("temperature", 0.0) > 0.0):
            sampling.setdefault("temperature", 1.0)
        else:
            sampling["temperature"] = 0.0
        lengths = (options[name] for name in _LENGTHS if name in options)
        return SamplingParams(
            max_new_tokens=next(lengths, self._max_gen_toks),
            stop=tuple(text for text in stop if text),
            seed=0,
            **sampling,
        )
