"""Learning a drafter's static tree on the model's own texts, and comparing it with the default one.

Chances of ranks are counted while the drafter works on texts whose continuation is known: before each
step it is asked for the ranks of what follows. `rank_trees` makes the best tree of every size of them.
As a drafter also learns from the nodes that it feeds, sizes that are nearly as good are tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from draftless.calibration.margins import Comparison, compare
from draftless.calibration.rank_trees import (
    KINDS,
    Place,
    Template,
    hit_rates,
    promising,
    sized_templates,
)
from draftless.calibration.texts import OwnText, digest_texts, split_texts
from draftless.errors import ConfigError, InputError
from draftless.model import Draftless
from draftless.params import SamplingParams
from draftless.prices import PriceList
from draftless.provenance import collect_provenance
from draftless.rank_paths import TEMPLATE_FILE_VERSION, RankPath
from draftless.types import Drafter, DraftPasses, DraftTree, Row, StepRecord


class RankedDrafter(Drafter, Protocol):
    """A drafter with a template."""

    def future_ranks(self, row: Row, token_ids: Sequence[int]) -> RankPath:
        """Ranks of the tokens that follow among its guesses, up to the first that is none."""


class Watched:
    """A drafter at work on one text after the other, and the places that it was seen at.

    Attributes:
        places: one per step, as long as the output is the text.
    """

    def __init__(self, drafter: RankedDrafter, depth: int) -> None:
        self._drafter = drafter
        self._depth = depth
        self._own: list[int] = []
        self.places: list[Place] = []

    def expect(self, token_ids: Sequence[int]) -> None:
        """The next request will generate these."""
        self._own = list(token_ids)

    def reset(self, row: Row) -> None:
        self._drafter.reset(row)

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        for row in rows:
            done = row.token_ids[row.prompt_len :]
            ahead = self._own[len(done) : len(done) + self._depth]
            if ahead and done == self._own[: len(done)]:  # in half precision it may depart
                self.places.append(Place(self._drafter.future_ranks(row, ahead), len(ahead)))
        return self._drafter.propose(rows, passes)

    def observe(self, records: Sequence[StepRecord]) -> None:
        self._drafter.observe(records)


@dataclass(frozen=True)
class TreeOptions:
    """What a template is learned for.

    Attributes:
        temperatures: of the texts; all count alike.
        seed: of sampled texts.

    Raises:
        ConfigError: there is no temperature, or one is below 0.
    """

    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise ConfigError(
                f"temperatures {self.temperatures} must be one or more numbers from 0"
            )


@dataclass(frozen=True)
class TreeResult:
    """What was found for a drafter.

    Attributes:
        drafter: its name.
        template: the tree.
        rates: `[depth, top_k]`, what it was chosen by.
        num_places: steps that these were counted at.
        comparison: with the default tree on held-out texts: tokens per second of real drafting,
            with passes at their prices.
        tokens_per_step: there, of the template and of the default.
        prices: what passes cost.
        facts: model, texts and options.
    """

    drafter: str
    template: Template
    rates: np.ndarray
    num_places: int
    comparison: Comparison
    tokens_per_step: tuple[float, float]
    prices: PriceList
    facts: dict[str, Any]

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be faster than the default."""
        return self.comparison.over_best.is_clear

    @property
    def options(self) -> dict[str, Any]:
        """For the drafter, and for `draftless.json`."""
        return template_options(self.template.paths)

    def to_dict(self) -> dict[str, Any]:
        """The content of `OUTPUT/DRAFTER.json`, which the drafter takes as its template."""
        own, default = self.tokens_per_step
        return {
            "format_version": TEMPLATE_FILE_VERSION,
            "drafter": self.drafter,
            **self.options,
            "found": {
                "tokens_per_step": self.template.tokens_per_step,
                "forward_s": self.template.forward_s,
                "tokens_per_second": self.template.tokens_per_second,
            },
            "held_out": {
                "tokens_per_step": own,
                "default_tokens_per_step": default,
                "tokens_per_second": self.comparison.value,
                "default_tokens_per_second": self.comparison.random_values[0],
                "margin": asdict(self.comparison.over_best),
                "num_texts": self.comparison.num_texts,
                "is_better": self.is_better,
            },
            "rates": self.rates.round(5).tolist(),
            "num_places": self.num_places,
            "options": self.facts,
            "prices": self.prices.to_dict(),
            "provenance": collect_provenance(),
        }


def template_options(paths: Sequence[RankPath]) -> dict[str, Any]:
    """A template and the budget that it fills."""
    return {"template": [list(path) for path in paths], "budget": len(paths) + 1}


def search_template(
    model: Draftless,
    drafter: str,
    texts: Sequence[OwnText],
    prices: PriceList,
    options: TreeOptions,
    on_text: Callable[[], None] | None = None,
) -> TreeResult:
    """Learn on half of the texts, and compare with the default tree on the other half.

    Args:
        model: any drafter.
        drafter: a name of `KINDS`.
        texts: of the model's own; of each domain every second one is held out.
        prices: of this machine.
        options: temperatures.
        on_text: called after every text that was drafted.

    Raises:
        ConfigError: the drafter has no template.
        InputError: there are too few texts.
    """
    if drafter not in KINDS:
        raise ConfigError(f"{drafter!r} has no template; those that have are {', '.join(KINDS)}")
    kind, told = KINDS[drafter], on_text or (lambda: None)
    searched, held = (_at_temperatures(model, half, options) for half in split_texts(texts))
    watched = Watched(model.with_drafter(drafter).drafter, kind.depth)  # type: ignore[arg-type]
    for text, params in searched:
        watched.expect(text.own_ids)
        model.with_drafter(watched).generate(list(text.prompt_ids), params)
        told()
    if not watched.places:
        raise InputError("no text is long enough to draft in; give more --text-tokens")
    rates = hit_rates(watched.places, kind)
    length = _typical_len([text for text, _ in searched])

    def speed(one: Template) -> float:
        drafted = model.with_drafter(drafter, template_options(one.paths))
        totals = np.array(_totals(drafted, searched, prices, told))
        return float(totals[:, 0].sum() / totals[:, 1].sum())

    template = max(promising(sized_templates(rates, kind, prices, length)), key=speed)
    drafted = [model.with_drafter(drafter, template_options(template.paths))]
    drafted.append(model.with_drafter(drafter))
    totals = np.array([_totals(one, held, prices, told) for one in drafted])  # [2, T, 3]
    tokens, seconds, steps = totals[:, :, 0], totals[:, :, 1], totals[:, :, 2]
    own, default = (tokens.sum(1) / steps.sum(1)).tolist()
    return TreeResult(
        drafter,
        template,
        rates,
        len(watched.places),
        compare(tokens, seconds, options.seed),
        (own, default),
        prices,
        learned_from(model, texts, options),
    )


def learned_from(
    model: Draftless, texts: Sequence[OwnText], options: TreeOptions
) -> dict[str, Any]:
    """What a template depends on, prices apart."""
    return {
        "temperatures": list(options.temperatures),
        "seed": options.seed,
        "model_fingerprint": model.target.fingerprint(),
        "domains": sorted({text.domain for text in texts}),
        "num_texts": len(texts),
        "texts": f"{digest_texts(texts):016x}",
    }


def _at_temperatures(
    model: Draftless, texts: Sequence[OwnText], options: TreeOptions
) -> list[tuple[OwnText, SamplingParams]]:
    """Every text at every temperature: the greedy ones are there, the others are written now."""
    found = []
    plain = model.with_drafter("none")
    for temperature in options.temperatures:
        for number, text in enumerate(texts):
            params = SamplingParams(
                max_new_tokens=len(text.own_ids),
                temperature=temperature,
                seed=options.seed + number,
            )
            if temperature:
                own = plain.generate(list(text.prompt_ids), params).token_ids
                text = replace(text, own_ids=tuple(own))
            found.append((text, params))
    return found


def _totals(
    model: Draftless,
    texts: Sequence[tuple[OwnText, SamplingParams]],
    prices: PriceList,
    on_text: Callable[[], None],
) -> list[tuple[float, float, float]]:
    """Tokens, seconds of passes by the price list, and steps, of every text."""
    found = []
    for text, params in texts:
        length, tokens, seconds, steps = len(text.prompt_ids) - 1, 0, 0.0, 0
        for chunk in model.stream(list(text.prompt_ids), params):
            seconds += prices.forward_s(chunk.num_nodes, length + tokens)
            tokens += len(chunk.token_ids)
            steps += 1
        found.append((float(tokens), seconds, float(steps)))
        on_text()
    return found


def _typical_len(texts: Sequence[OwnText]) -> int:
    """Cached tokens in the middle of a text, in the mean."""
    return round(float(np.mean([len(t.prompt_ids) + len(t.own_ids) / 2 for t in texts])))
