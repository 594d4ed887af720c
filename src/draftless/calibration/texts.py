"""The model's own texts: what a draft has to hit, so what skip sets are searched on."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.jsonl import write_json
from draftless.model import Draftless
from draftless.noise import hash_ids

FORMAT_VERSION = 1
SHORTEST = 4
"""Own tokens that a text must have: a draft of a shorter one says nothing."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text shall answer: text or chat messages, and the domain it is from."""

    domain: str
    content: Any


@dataclass(frozen=True, slots=True)
class OwnText:
    """A prompt and the model's own greedy continuation.

    Attributes:
        domain: where the prompt is from.
        prompt_ids: at least one.
        own_ids: at least `SHORTEST`; the last one is the token that ended it, if it has an end.
        is_complete: it ended by itself, not at the limit.
    """

    domain: str
    prompt_ids: tuple[int, ...]
    own_ids: tuple[int, ...]
    is_complete: bool

    @property
    def key(self) -> int:
        """A hash of the prompt, to order and choose texts by, whatever file they stood in."""
        return hash_ids(0, ids=self.prompt_ids)


@dataclass(frozen=True)
class TextOptions:
    """Which texts are made.

    Attributes:
        per_domain: most texts of one domain.
        num_tokens: most own tokens of a text.
        seed: of the choice.
        batch_size: texts that are generated together.

    Raises:
        ConfigError: a count is below its least value.
    """

    per_domain: int = 24
    num_tokens: int = 64
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, low in (("per_domain", 2), ("num_tokens", SHORTEST), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)} is below {low}")


@dataclass(frozen=True)
class OwnTexts:
    """What was made, in the order of domain and choice, and what was left out."""

    texts: tuple[OwnText, ...]
    left_out: Mapping[str, int]


def digest_texts(texts: Sequence[OwnText]) -> int:
    """A hash of all ids in their order."""
    state = 0
    for text in texts:
        state = hash_ids(state, len(text.prompt_ids), ids=(*text.prompt_ids, *text.own_ids))
    return state


def make_texts(
    model: Draftless,
    prompts: Sequence[Prompt],
    options: TextOptions,
    on_batch: Callable[[int], None] | None = None,
) -> OwnTexts:
    """Let the model continue some prompts of each domain, greedily and in batches.

    Args:
        model: its drafter does not matter.
        prompts: of all domains; those with the lowest hash of content and seed are taken, so the
            choice does not depend on their order or on other domains.
        options: how many, and how long.
        on_batch: called with the number of texts that were made since the last call.

    Raises:
        InputError: nothing is left: every prompt is too long or is answered in a few tokens.
    """
    left_out: Counter[str] = Counter()
    chosen = _choose(model, prompts, options, left_out)
    chosen.sort(key=lambda one: len(one[1]))  # rows of a batch alike in length
    plain = model.with_drafter("none")
    found = []
    for begin in range(0, len(chosen), options.batch_size):
        batch = chosen[begin : begin + options.batch_size]
        outputs = plain.generate([ids for _, ids in batch], max_new_tokens=options.num_tokens)
        for (domain, ids), output in zip(batch, outputs, strict=True):
            if len(output.token_ids) < SHORTEST:
                left_out["too_short"] += 1
                continue
            is_complete = output.finish_reason == "stop"
            found.append(OwnText(domain, tuple(ids), tuple(output.token_ids), is_complete))
        if on_batch is not None:
            on_batch(len(batch))
    if not found:
        raise InputError(
            f"none of {len(prompts)} prompts gives a text to search on: {dict(left_out)}; a prompt "
            f"must leave room for {options.num_tokens} tokens and get at least {SHORTEST}"
        )
    found.sort(key=lambda text: (text.domain, text.key))
    return OwnTexts(tuple(found), dict(left_out))


def _choose(
    model: Draftless, prompts: Sequence[Prompt], options: TextOptions, left_out: Counter[str]
) -> list[tuple[str, list[int]]]:
    """Domain and ids of the prompts that are continued; what does not fit is counted."""
    domains: dict[str, dict[int, list[int]]] = defaultdict(dict)
    limit = model.target.max_positions
    for prompt in prompts:
        ids = model.encode(prompt.content)
        if limit is not None and len(ids) + options.num_tokens > limit:
            left_out["too_long"] += 1
        elif ids:
            domains[prompt.domain][hash_ids(options.seed, ids=ids)] = ids
    return [
        (domain, ids)
        for domain, hashed in sorted(domains.items())
        for _, ids in sorted(hashed.items())[: options.per_domain]
    ]


def split_texts(texts: Sequence[OwnText]) -> tuple[list[OwnText], list[OwnText]]:
    """Halves of every domain: to search on, and held out.

    Raises:
        InputError: there are no two texts of any domain.
    """
    halves: tuple[list[OwnText], list[OwnText]] = ([], [])
    for domain in sorted({text.domain for text in texts}):
        ordered = sorted((t for t in texts if t.domain == domain), key=lambda t: t.key)
        for index, text in enumerate(ordered):
            halves[index % 2].append(text)
    if not halves[1]:
        raise InputError(
            "a search needs at least two texts of a domain: one to search on and one held out"
        )
    return halves


def read_or_make_texts(
    file: Path,
    model: Draftless,
    prompts: Sequence[Prompt],
    options: TextOptions,
    on_batch: Callable[[int], None] | None = None,
) -> OwnTexts:
    """The texts that a file holds, or new ones, which are written to it in one piece.

    A resumed search needs the very same texts, and in half precision another number of threads may
    change them.

    Raises:
        ConfigError: the file's texts were made with another model, other prompts or options.
        ArtifactError: the file is damaged.
        InputError: as `make_texts`.
    """
    facts = {
        **{name: v for name, v in asdict(options).items() if name != "batch_size"},
        "model_fingerprint": model.target.fingerprint(),
        "prompts": _digest_prompts(prompts),
    }
    if file.exists():
        return read_texts(file, facts)
    made = make_texts(model, prompts, options, on_batch)
    data = {
        "format_version": FORMAT_VERSION,
        "facts": facts,
        "left_out": dict(made.left_out),
        "texts": [asdict(text) for text in made.texts],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, data)
    return made


def read_texts(file: Path, facts: Mapping[str, Any]) -> OwnTexts:
    """The texts of a file, if they were made with these facts.

    Raises:
        ConfigError: they were not.
        ArtifactError: the file is damaged.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        before, version = dict(data["facts"]), data["format_version"]
        texts = tuple(
            OwnText(
                str(one["domain"]),
                tuple(map(int, one["prompt_ids"])),
                tuple(map(int, one["own_ids"])),
                bool(one["is_complete"]),
            )
            for one in data["texts"]
        )
        left_out = dict(data["left_out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is damaged: {error!r}; remove it and search in another --output"
        ) from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file} has format version {version}, this Draftless reads {FORMAT_VERSION}"
        )
    for name, value in facts.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{file} was made with {name}={before.get(name)}, not {value}; use the same "
                "model, data and options, or another --output"
            )
    return OwnTexts(texts, left_out)


def _digest_prompts(prompts: Sequence[Prompt]) -> str:
    """Of the set of prompts: their order does not matter."""
    lines = sorted(json.dumps([one.domain, one.content], sort_keys=True) for one in prompts)
    return f"{hash_ids(0, ids=list(chr(0).join(lines).encode())):016x}"
