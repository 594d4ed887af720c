"""The arguments of one call of `generate` as requests of the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from draftless.engine.generation_config import Params, resolve_params
from draftless.engine.loop import Request, make_request
from draftless.engine.target import TargetModel
from draftless.errors import ConfigError, DraftlessError, InputError
from draftless.inputs import Padding, Prompts
from draftless.types import Chunk, FinishReason, Output, StepRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftless.encoding import PromptEncoder


def eos_token_ids(
    target: TargetModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """EOS ids of the model's generation config, else of the tokenizer."""
    eos = target.model.generation_config.eos_token_id
    if eos is None and tokenizer is not None:
        eos = tokenizer.eos_token_id
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def padding_of(
    target: TargetModel,
    tokenizer: PreTrainedTokenizerBase | None,
    params: object,
    options: Mapping[str, Any],
) -> Padding:
    """What is known of padding in a call with these options."""
    configs = (params, options.get("generation_config"), target.model.generation_config)

    def given(name: str) -> Any:
        values = [options.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in values if value is not None), None)

    pad, eos = given("pad_token_id"), given("eos_token_id")
    eos = eos_token_ids(target, tokenizer) if eos is None else eos
    return Padding(
        pad,
        (eos,) if isinstance(eos, int) else tuple(eos),
        getattr(tokenizer, "pad_token_id", None),
    )


def make_requests(
    target: TargetModel,
    encoder: PromptEncoder,
    read: Prompts,
    params: Params | Sequence[Params] | None,
    options: Mapping[str, Any],
) -> list[Request]:
    """One request per prompt, all checked before any work.

    Raises:
        InputError: names the prompt of a batch.
        ConfigError: as `resolve_params`; or params that do not fit to the prompts.
    """
    named = dict(options)
    count = len(read.items)
    is_each = isinstance(params, Sequence)
    each = list(params) if isinstance(params, Sequence) else [params] * count
    if len(each) != count:
        raise ConfigError(f"{count} prompts but {len(each)} params; give one or as many")
    tokenizer = named.pop("tokenizer", None) or encoder.tokenizer
    eos = eos_token_ids(target, tokenizer)
    requests = []
    for index, (prompt, one) in enumerate(zip(read.items, each, strict=True)):
        with _naming(index if read.is_batch else None, is_each=is_each):
            ids = encoder.encode(prompt)
            length = read.width or len(ids)
            resolved = resolve_params(one, named, length, target.model.generation_config)
            requests.append(make_request(target, index, ids, resolved, tokenizer, eos))
    return requests


def batches_of(requests: Sequence[Request], batch_size: int | None) -> Iterator[Sequence[Request]]:
    """Requests that are decoded together; None: all.

    Raises:
        ConfigError: the size is no count.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ConfigError(f"batch_size must be an int of at least 1, got {batch_size!r}")
    size = batch_size or max(1, len(requests))
    for begin in range(0, len(requests), size):
        yield requests[begin : begin + size]


def output_of(target: TargetModel, request: Request, reason: FinishReason) -> Output:
    """What a request returns that has ended."""
    row = request.row
    assert row.params.seed is not None
    return Output(
        token_ids=row.token_ids[row.prompt_len :],
        text=request.stops.finish_text(),
        finish_reason=reason,
        seed=row.params.seed,
        stats=request.stats,
        prompt_token_ids=row.token_ids[: row.prompt_len],
        is_reproducible=getattr(target, "is_reproducible", True),
    )


def chunk_of(target: TargetModel, request: Request, record: StepRecord) -> Chunk:
    """What a stream shows of one step."""
    reason = record.verdict.finish_reason
    return Chunk(
        text=request.stops.take_text(is_last=reason is not None),
        token_ids=record.verdict.token_ids,
        num_accepted_tokens=record.verdict.num_accepted_tokens,
        sources=record.sources,
        num_draft_tokens=record.tree.num_draft_tokens,
        num_nodes=record.tree.num_nodes,
        output=output_of(target, request, reason) if reason else None,
    )


@contextmanager
def _naming(index: int | None, *, is_each: bool) -> Iterator[None]:
    """Say of which prompt of a batch an error speaks."""
    try:
        yield
    except DraftlessError as error:
        if index is None or not (is_each or isinstance(error, InputError)):
            raise
        raise type(error)(f"prompt {index}: {error}") from error
