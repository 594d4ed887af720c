"""Near-ties (DESIGN 1, L2): is a difference from plain decoding rounding, or a defect?

At the first token that differs, the shared prefix is computed again in fp32. In fp32 and fp64 every
difference is a defect and nothing is computed. In half precision the two tokens' scores (logits;
when sampling logits / T + noise) must lie within `LIMIT` units of each other.

The unit is one ULP of the run's dtype at the magnitude of the *largest* logit of that position,
divided by T. The two tokens' own logits would be the wrong measure: a logit is a sum of products
whose terms are as large as those of the largest logit, and it is there that hidden states and
partial sums are rounded; a sampled token can have a logit near zero and still carry the whole
error. Measured with the two tokens' own magnitude, 2 of 56 sampled divergences of the embedded
model went beyond 4 units (up to 8.9), and so did plain decoding compared with itself in a batch.

Truncation (top-k, top-p, min-p) can enlarge a difference: a token just inside the kept set in one
run and just outside in the other changes the outcome whatever its score. So a token within the
same limit of a border explains a difference, if it is the one that would have won.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from draftless.bench.methods import stock_copy
from draftless.bench.rows import Margin
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams

LIMIT = 8
"""Most ULPs between two scores at a first divergence: each of the two may be off by four."""

HALF_DTYPES = (torch.bfloat16, torch.float16)
_ENDED = -1


def first_difference(ids: Sequence[int], plain_ids: Sequence[int]) -> int | None:
    """Index of the first token that differs, None if all are equal."""
    pairs = enumerate(zip(ids, plain_ids, strict=False))
    differing = (index for index, (a, b) in pairs if a != b)
    shorter, longer = sorted((len(ids), len(plain_ids)))
    return next(differing, None if shorter == longer else shorter)


def ulp(value: float, dtype: torch.dtype) -> float:
    """Distance of neighbouring numbers of `dtype` at this magnitude."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** math.floor(math.log2(max(abs(value), info.tiny)))


class Judge:
    """Tells near-ties from defects.

    Args:
        model: of the run. An fp32 copy of it is made when a divergence asks for one, and kept.
        input_only_ids: ids that the run never emits.
    """

    def __init__(self, model: PreTrainedModel, input_only_ids: Sequence[int] = ()) -> None:
        self._model = model
        self._input_only_ids = list(input_only_ids)
        self._dtype: torch.dtype = model.dtype
        self._exact: PreTrainedModel | None = None

    def margin(
        self,
        prompt_ids: Sequence[int],
        token_ids: Sequence[int],
        plain_ids: Sequence[int],
        params: SamplingParams,
    ) -> Margin | None:
        """Where an output parts from plain decoding, or None if they are equal.

        Where the fp32 copy finds no room, `ulps` stays None and the difference counts as a defect.

        Args:
            prompt_ids: of both.
            token_ids: the output.
            plain_ids: our plain loop's.
            params: of both, with the seed filled in if it samples.
        """
        index = first_difference(token_ids, plain_ids)
        if index is None:
            return None
        own, plain = (ids[index] if index < len(ids) else _ENDED for ids in (token_ids, plain_ids))
        margin = Margin(index, own, plain)
        if _ENDED in (own, plain) or self._dtype not in HALF_DTYPES:
            return margin  # no rounding ends a text or moves an fp32 choice that far
        try:
            logits = self._logits([*prompt_ids, *plain_ids[:index]])
        except torch.OutOfMemoryError:
            return margin  # not shown to be a near-tie, so not called one
        position = len(prompt_ids) + index
        return judged(margin, logits, params, position, self._dtype)

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int]) -> torch.Tensor:  # [V] float64
        if self._exact is None:
            self._exact = stock_copy(self._model, torch.float32)
        batch = torch.tensor([list(ids)], device=self._exact.device)
        logits: torch.Tensor = self._exact(batch, logits_to_keep=1, use_cache=False).logits
        last = logits[0, -1].double().cpu()
        last[self._input_only_ids] = -math.inf
        return last


def judged(
    margin: Margin,
    logits: torch.Tensor,  # [V] float64, of the fp32 recomputation
    params: SamplingParams,
    position: int,
    dtype: torch.dtype,
) -> Margin:
    """`margin` with its distance in ULPs and the verdict.

    Args:
        margin: index and tokens.
        logits: what the model says after the shared prefix.
        params: of the run.
        position: of the differing token in prompt + output, the one its noise is keyed by.
        dtype: of the run.
    """
    unit = ulp(float(logits[logits.isfinite()].abs().max()), dtype)
    scores = logits
    if not params.is_greedy:
        unit /= params.temperature
        scores = logits / params.temperature
    pair = torch.tensor([margin.token_id, margin.plain_token_id])
    drawn = scores[pair]
    if not params.is_greedy:
        assert params.seed is not None
        drawn = drawn + KeyedNoise(params.seed, params.sample_index)(position, pair)
    margin.ulps = float((drawn[0] - drawn[1]).abs()) / unit
    slack = LIMIT * unit
    first, second = (border(scores, int(token), params, slack) for token in pair)
    winner = first if drawn[0] > drawn[1] else second
    could_be_drawn = "outside" not in (first, second)
    margin.is_near_tie = could_be_drawn and (margin.ulps <= LIMIT or winner == "border")
    return margin


def border(
    scores: torch.Tensor,  # [V] logits / T
    token_id: int,
    params: SamplingParams,
    slack: float,
) -> str:
    """Where a token lies as to truncation: `inside`, `outside`, or within `slack` of the `border`."""
    if params.is_greedy:
        return "inside"
    places = []
    own = scores[token_id]
    if 0 < params.top_k < scores.shape[0]:
        best = scores.topk(params.top_k + 1).values
        # The neighbour on the other side: to be inside is to beat the best that is left out.
        last, next_one = best[-2], best[-1]
        places.append(_place(float(own - next_one if own >= last else own - last), slack))
        scores = scores[scores >= last]
    if params.top_p < 1.0:
        probabilities = scores.softmax(0)
        # What stands before the token, if all scores err in its favour, and if all err against it.
        low = _shifted(float(probabilities[scores > own + slack].sum()), -slack)
        others = float(
            probabilities[scores > own - slack].sum() - (own - scores.logsumexp(0)).exp()
        )
        high = _shifted(max(others, 0.0), slack)
        if high < params.top_p:
            places.append("inside")
        else:
            places.append("border" if low < params.top_p else "outside")
    if params.min_p:
        places.append(_place(float(own - scores.max()) - math.log(params.min_p), slack))
    for place in ("outside", "border"):
        if place in places:
            return place
    return "inside"


def _place(distance: float, slack: float) -> str:
    """Above the border, below it, or within `slack` of it."""
    if abs(distance) <= slack:
        return "border"
    return "inside" if distance > 0 else "outside"


def _shifted(mass: float, log_odds: float) -> float:
    """A probability mass after its odds were multiplied by `exp(log_odds)`."""
    if mass <= 0.0 or mass >= 1.0:
        return mass
    return 1.0 / (1.0 + (1.0 - mass) / mass * math.exp(-log_odds))
