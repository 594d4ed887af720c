"""The one loop: prefill, then propose, verify, commit, observe. Every drafter goes through it."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from draftless.engine.cache import KVCache
from draftless.engine.draft_passes import CachedPasses
from draftless.engine.position_noise import PositionNoise
from draftless.engine.processors import check_token_ids
from draftless.engine.sampling import TokenSampler, fetch
from draftless.engine.stops import StopChecker
from draftless.engine.target import TargetModel
from draftless.engine.threads import torch_on_one_thread
from draftless.engine.tree import prune, select
from draftless.engine.verify import walk
from draftless.errors import ConfigError, InputError
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import Drafter, DraftTree, Row, Statistics, StepRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST_ROOM = 128  # slots beyond the prompt that are there from the start
_STAGES = ("propose", "forward", "verify", "commit", "observe")  # and "draft", within propose


@dataclass
class Request:
    """One request in the loop: what the drafter sees (`row`) and what only the engine needs."""

    row: Row
    sampler: TokenSampler
    stops: StopChecker
    stats: Statistics


def make_request(
    target: TargetModel,
    request_id: int,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    tokenizer: PreTrainedTokenizerBase | None,
    eos_token_ids: Sequence[int],
) -> Request:
    """Check a prompt and prepare its row, noise, sampler and stops.

    Raises:
        InputError: for an empty prompt, ids outside the vocabulary or for input only, or a prompt
            that leaves no room in the model's context.
        ConfigError: an option names an id outside the vocabulary, or forces one for input only.
    """
    _check_prompt(prompt_ids, target)
    check_token_ids(params, target.vocab_size, target.input_only_ids)
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    if params.eos_token_ids is not None:
        eos_token_ids = tuple(params.eos_token_ids)  # type: ignore[arg-type]
    assert params.seed is not None
    keyed = KeyedNoise(params.seed, params.sample_index)
    noise = None if params.is_greedy else PositionNoise(keyed, target.vocab_size, target.device)
    row = Row(request_id, prompt_ids, params, noise)
    return Request(
        row=row,
        sampler=TokenSampler(row, eos_token_ids, target.device),
        stops=StopChecker(row, eos_token_ids, tokenizer, target.max_positions, target.device),
        stats=Statistics(),
    )


def _check_prompt(prompt_ids: Sequence[int], target: TargetModel) -> None:
    if not prompt_ids:
        raise InputError("the prompt is empty; give at least one token (a BOS id, for example)")
    low, high = min(prompt_ids), max(prompt_ids)
    if low < 0 or high >= target.vocab_size:
        raise InputError(
            f"token id {low if low < 0 else high} lies outside the vocabulary 0..{target.vocab_size - 1}"
        )
    input_only = set(target.input_only_ids).intersection(prompt_ids)
    if input_only:
        raise InputError(
            f"the prompt holds {sorted(input_only)}: adaptive tokens, which this model reads while "
            "it drafts and which are no text; leave them out"
        )
    limit = target.max_positions
    if limit is not None and len(prompt_ids) >= limit:
        raise InputError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context is {limit}; "
            "shorten the prompt so that at least one token can follow"
        )


def decode(
    target: TargetModel, drafter: Drafter, requests: Sequence[Request]
) -> Iterator[tuple[Request, StepRecord]]:
    """Run requests to their ends in one batch; yields every step of every row.

    Rows of unequal length and unequal acceptance share each forward. A row that ends leaves the
    batch, and the others go on.

    Raises:
        CapabilityError: the model is in training mode, or was changed since it was loaded.
    """
    target.check_unchanged()
    active = list(requests)
    with torch.inference_mode(), torch_on_one_thread(target.has_own_threads):
        cache = _prefill(target, drafter, active)
    while active:
        with torch.inference_mode(), torch_on_one_thread(target.has_own_threads):
            records = _step(target, drafter, cache, active)
        finished = [i for i, record in enumerate(records) if record.verdict.finish_reason]
        yield from zip(list(active), records, strict=True)
        for index in reversed(finished):
            with torch.inference_mode():
                cache.drop(index)
            last = active.pop()
            if index < len(active):
                active[index] = last


def _prefill(target: TargetModel, drafter: Drafter, requests: Sequence[Request]) -> KVCache:
    """Cache every prompt but its last token, which is the root of the first tree."""
    slots = max(r.row.prompt_len + min(r.stops.num_left, _FIRST_ROOM) for r in requests)
    cache = target.make_cache(len(requests), slots + _FIRST_ROOM)
    for index, request in enumerate(requests):
        started = time.perf_counter()
        prefill = target.prefill(cache, index, request.row.token_ids[:-1])
        if prefill.vector is not None and prefill.vector.is_cuda:
            torch.cuda.synchronize(prefill.vector.device)  # or the first forward would wait for it
        request.row.prompt_vector = prefill.vector
        request.stats.num_forward_passes += prefill.num_passes
        request.stats.add_time("prefill", time.perf_counter() - started)
        drafter.reset(request.row)
    return cache


def _fitting(tree: DraftTree, row: Row) -> DraftTree:
    """The tree without what is too deep.

    Raises:
        ConfigError: it does not begin where the row ends.
    """
    root, last = tree.token_ids[0], row.token_ids[-1]
    if root != last:
        raise ConfigError(
            f"the drafter proposed a tree with root {root}; node 0 must carry the last token of the "
            f"row, {last}"
        )
    return prune(tree, row.max_depth)


def _forward(
    target: TargetModel,
    cache: KVCache,
    samplers: Sequence[TokenSampler],
    trees: Sequence[DraftTree],
) -> list[torch.Tensor]:  # [N, V] each
    """One pass over all trees, and its logits with the samplers."""
    layouts = [tree.layout for tree in trees]
    logits = target.forward(cache, [tree.token_ids for tree in trees], layouts)
    for sampler, of_row, layout in zip(samplers, logits, layouts, strict=True):
        sampler.bind(of_row, layout.depths)
    if not fetch(samplers) and logits[0].is_cuda:
        torch.cuda.synchronize(logits[0].device)  # or the wait would be booked on verification
    return logits


def _is_spoiled(
    target: TargetModel, trees: Sequence[DraftTree], logits: Sequence[torch.Tensor]
) -> bool:
    """Whether some node may know nothing because of what it must not see.

    Where the keys or values of a draft overflow, hiding them does not help: zero times NaN is NaN.
    Plain decoding of one row meets nothing that is hidden, so there nobody asks.
    """
    if len(trees) == 1 and trees[0].num_nodes == 1:
        return False
    sums = [of_row[:, target.first_emitted_id].sum() for of_row in logits]  # NaN if one is
    values = [sums[0].item()] if len(sums) == 1 else torch.stack(sums).tolist()
    return any(map(math.isnan, values))


def _start_again(
    target: TargetModel,
    cache: KVCache,
    active: Sequence[Request],
    trees: Sequence[DraftTree],
    logits: Sequence[torch.Tensor],  # [N, V] each
) -> list[DraftTree]:
    """Make a spoiled pass again without drafts; what the roots say then replaces theirs in `logits`."""
    cache.wipe()
    roots = [select(tree, [0]) for tree in trees]
    samplers = [request.sampler for request in active]
    for of_row, of_root in zip(logits, _forward(target, cache, samplers, roots), strict=True):
        of_row[0] = of_root[0]
    for request in active:
        request.stats.num_forward_passes += 1  # beside the one that every step counts
    return roots


def _step(
    target: TargetModel, drafter: Drafter, cache: KVCache, active: Sequence[Request]
) -> list[StepRecord]:
    """One step of all active rows."""
    clock = [time.perf_counter()]
    rows = [request.row for request in active]
    for request in active:
        # A draft deeper than the last token that may be emitted cannot be used; the same bound
        # keeps every node's position inside the context.
        request.row.max_depth = max(0, request.stops.num_left - 1)
    passes = CachedPasses(target, cache)
    with cache.scratch():
        trees = drafter.propose(rows, passes)
    trees = [_fitting(tree, row) for tree, row in zip(trees, rows, strict=True)]
    clock.append(time.perf_counter())

    samplers = [request.sampler for request in active]
    logits = _forward(target, cache, samplers, trees)
    walked = trees
    if _is_spoiled(target, trees, logits):
        walked = _start_again(target, cache, active, trees, logits)
    clock.append(time.perf_counter())

    verdicts = [
        walk(tree, request.sampler.draw, request.stops.push)
        for request, tree in zip(active, walked, strict=True)
    ]
    clock.append(time.perf_counter())

    for index, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        cache.commit(index, verdict.path)
        row.token_ids.extend(verdict.token_ids)
        if isinstance(row.noise, PositionNoise):
            row.noise.forget_before(len(row.token_ids))
    clock.append(time.perf_counter())

    known_s = {"propose": clock[1] - clock[0] - passes.seconds, "forward": clock[2] - clock[1]}
    drafter.observe(
        [StepRecord(*one, known_s) for one in zip(rows, trees, verdicts, logits, strict=True)]
    )
    clock.append(time.perf_counter())

    time_s = {
        stage: end - begin for stage, begin, end in zip(_STAGES, clock[:-1], clock[1:], strict=True)
    }
    time_s["draft"] = passes.seconds
    time_s["propose"] -= passes.seconds
    # Without the logits: the next forward overwrites what they show.
    done = [
        StepRecord(row, tree, verdict, time_s=time_s)
        for row, tree, verdict in zip(rows, trees, verdicts, strict=True)
    ]
    for request, record, num_passes in zip(active, done, passes.counts, strict=True):
        request.stats.add_step(record)
        request.stats.num_draft_passes += num_passes
    return done
