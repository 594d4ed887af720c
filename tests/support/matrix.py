"""The cells of the equivalence matrix and their plain texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import combinations, product

import torch

from draftless.drafters.registry import make_drafter
from draftless.params import SamplingParams
from support.driving import Job, run
from support.models import (
    FAMILIES,
    FAMILIES_OF_INDUCTOR,
    INDUCTOR,
    NATIVE,
    VOCAB_SIZE,
    prompt_ids,
    stock_model,
    target,
)

NUM_PLAIN = 40  # tokens of a plain text; stops lie well before its end
_FIRST_STOP = 11  # the plans of the replay drafter need so many tokens to show everything
_LAST_STOP = 32

# Of three tokens that may follow a token, one is banned.
_BAD_WORDS = [[t, (5 * t + k) % VOCAB_SIZE] for t in range(VOCAB_SIZE) for k in (1, 9)] + [[7]]

MODES: dict[str, dict[str, object]] = {
    "greedy": {},
    "greedy-penalty": {"repetition_penalty": 1.3},
    "greedy-bad-words": {"bad_words_ids": _BAD_WORDS, "no_repeat_ngram_size": 3},
    "sampled": {"temperature": 1.0},
    "top-k": {"temperature": 1.0, "top_k": 5},
    "top-p": {"temperature": 0.9, "top_p": 0.8},
    "min-p": {"temperature": 1.2, "min_p": 0.1},
    "penalty": {"temperature": 1.0, "repetition_penalty": 1.3},
    "bad-words": {"temperature": 1.0, "bad_words_ids": _BAD_WORDS},
    "combined": {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 3,
    },
    "rare-warpers": {"temperature": 1.1, "typical_p": 0.9, "epsilon_cutoff": 0.005},
}
ROWS: dict[str, tuple[int, ...]] = {
    "1": (1,),
    "2": (2,),
    "5": (5,),
    "300": (300,),
    "ragged": (5, 1, 300, 2),
}


@dataclass(frozen=True)
class Cell:
    """One combination; every drafter runs in it."""

    family: str
    attention: str
    dtype: str
    mode: str
    rows: str
    stop: str

    def __str__(self) -> str:
        return "-".join(str(getattr(self, f.name)) for f in fields(self))


def all_cells() -> list[Cell]:
    """The full product, in a fixed order."""
    eager = [
        Cell(name, attention, *rest)
        for name, family in FAMILIES.items()
        for attention in family.attentions
        for rest in product(("fp64", "fp32"), MODES, ROWS, ("eos", "length"))
    ]
    native = compiled_cells(FAMILIES, NATIVE, ("fp32", "bf16"))
    return eager + native + compiled_cells(FAMILIES_OF_INDUCTOR, INDUCTOR, ("fp32",))


def compiled_cells(families: Iterable[str], attention: str, dtypes: Sequence[str]) -> list[Cell]:
    """The same for compiled models; compiled fp64 is nobody's."""
    return [
        Cell(name, attention, *rest)
        for name in families
        for rest in product(dtypes, MODES, ROWS, ("eos", "length"))
    ]


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """A small part of `cells` with every pair of values that occurs in them (greedy, no chance)."""
    pairs_of = {cell: frozenset(_pairs(cell)) for cell in cells}
    missing = set().union(*pairs_of.values())
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: len(pairs_of[cell] & missing))
        chosen.append(best)
        missing -= pairs_of[best]
    return chosen


def _pairs(cell: Cell) -> Iterator[tuple[str, str]]:
    values = [f"{f.name}={getattr(cell, f.name)}" for f in fields(cell)]
    return combinations(values, 2)


@dataclass(frozen=True)
class Plain:
    """A plain text: a request, what plain decoding writes, and where to stop it.

    Attributes:
        token_ids: `NUM_PLAIN` new ids, decoded without any stop.
        places: numbers of new ids after which the last one is new to the text, so that it can
            serve as an EOS that stops there.
    """

    job: Job
    token_ids: tuple[int, ...]
    places: tuple[int, ...]

    def until_eos(self, index: int) -> tuple[Job, int]:
        """The job that an EOS stops at the `index`-th of the places, and how many ids it emits."""
        count = self.places[index % len(self.places)]
        return Job(self.job.prompt_ids, self.job.params, (self.token_ids[count - 1],)), count

    def until_length(self, count: int) -> tuple[Job, int]:
        """The job that `max_new_tokens` stops after `count` ids."""
        return Job(self.job.prompt_ids, replace(self.job.params, max_new_tokens=count)), count


@cache
def plain_text(family: str, attention: str, dtype: str, mode: str, length: int) -> Plain:
    """The first seeded prompt of this length whose plain text has a token new to it late enough."""
    for seed in range(100):
        prompt = prompt_ids(length, seed)
        params = SamplingParams(max_new_tokens=NUM_PLAIN, seed=seed, **MODES[mode])  # type: ignore[arg-type]
        job = Job(prompt, params)
        if params.is_greedy and dtype != "bf16":  # where the stock code rounds in another order
            token_ids = stock_greedy(family, dtype, mode, tuple(prompt))
        else:
            plain = run(target(family, dtype, attention), make_drafter("none"), [job])
            token_ids = tuple(plain[0].token_ids)
        places = tuple(
            count
            for count in range(_FIRST_STOP, _LAST_STOP)
            if token_ids.index(token_ids[count - 1]) == count - 1
        )
        if places:
            return Plain(job, token_ids, places)
    raise AssertionError(f"no prompt of length {length} gives {family} a varied {mode} text")


@cache
def stock_greedy(family: str, dtype: str, mode: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """New ids of `transformers.generate` on the stock model, without any stop."""
    output = stock_model(family, dtype).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NUM_PLAIN,
        do_sample=False,
        pad_token_id=0,
        **MODES[mode],
    )
    return tuple(output[0, len(prompt) :].tolist())
