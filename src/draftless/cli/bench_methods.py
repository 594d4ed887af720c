"""From the options of `draftless bench run` to samplings and variants of drafters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftless.errors import ConfigError

if TYPE_CHECKING:
    from draftless.bench.methods import Sampling


def split(values: Sequence[str] | None) -> list[str]:
    """Values with commas between them, or given several times."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def read_mixes(values: Sequence[str] | None) -> tuple[float, ...]:
    """Mix ratios of streams, each once.

    Raises:
        ConfigError: one is not a number.
    """
    found = []
    for value in split(values):
        try:
            found.append(float(value))
        except ValueError as error:
            raise ConfigError(f"mix ratio {value!r} is not a number") from error
    return tuple(dict.fromkeys(found))


def read_samplings(
    temperatures: Sequence[str], *, top_k: int, top_p: float, min_p: float
) -> tuple[Sampling, ...]:
    """One sampling per temperature; greedy has no use for top-k, top-p and min-p.

    Raises:
        ConfigError: one is not a temperature, or all are 0 although something else is given.
    """
    from draftless.bench.methods import Sampling

    found = []
    for value in split(temperatures):
        try:
            temperature = float(value)
        except ValueError as error:
            raise ConfigError(f"temperature {value!r} is not a number") from error
        found.append(Sampling(temperature, top_k, top_p, min_p) if temperature else Sampling())
    if (top_k or top_p < 1.0 or min_p) and all(sampling.is_greedy for sampling in found):
        raise ConfigError("top-k, top-p and min-p need a temperature above 0: --temperature 0,1")
    return tuple(dict.fromkeys(found))


def read_variants(
    options: Sequence[str], sweeps: Sequence[str]
) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Drafters with options of their own.

    Args:
        options: `NAME.KEY=VALUE`; those of one drafter make one variant.
        sweeps: `NAME.KEY=VALUES` with several values (`1..13`, `1,3,5`, `1..3,8`, `a.json,b.json`): a
            variant for each, with the `options` of that drafter; several sweeps of one drafter make
            all combinations.

    Raises:
        ConfigError: one has another form, or a key is given twice.
    """
    fixed: dict[str, dict[str, Any]] = {}
    swept: dict[str, dict[str, list[Any]]] = {}
    for option in options:
        name, key, text = _parts(option, "--drafter-option", "tr-jacobi.budget=32")
        fixed.setdefault(name, {})[key] = read_value(text)
    for option in sweeps:
        name, key, text = _parts(option, "--sweep", "sdsat.k=1..13")
        if key in fixed.get(name, {}) or key in swept.get(name, {}):
            raise ConfigError(f"{name}.{key} is given twice; name all its values in one --sweep")
        swept.setdefault(name, {})[key] = _values(text, option)
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name in dict.fromkeys((*fixed, *swept)):
        keys = swept.get(name, {})
        for values in product(*keys.values()):
            found.append((name, {**fixed.get(name, {}), **dict(zip(keys, values, strict=True))}))
    return tuple(found)


def _parts(option: str, flag: str, example: str) -> tuple[str, str, str]:
    path, equals, text = option.partition("=")
    name, dot, key = path.partition(".")
    if not (equals and dot and name and key and text):
        raise ConfigError(f"{flag} {option!r} is not NAME.KEY=VALUE, such as {example}")
    return name, key, text


def read_value(text: str) -> Any:
    """A value as YAML reads it: 8, 0.5, false, text."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no value such as 8, 0.5, false or [1, 2]") from error


def _values(text: str, option: str) -> list[Any]:
    """All values of a sweep, each once."""
    found: list[Any] = []
    for part in split([text]):
        low, dots, high = part.partition("..")
        if not dots or Path(part).name != part:  # ../a.json is a file
            found.append(read_value(part))
        elif low.isdigit() and high.isdigit() and int(low) <= int(high):
            found += range(int(low), int(high) + 1)
        else:
            raise ConfigError(f"{part!r} in --sweep {option!r} is no range such as 1..13")
    return list(dict.fromkeys(found))
