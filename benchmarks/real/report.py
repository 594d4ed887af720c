"""Add up runs on real models: one JSON file a model, and the tables of the pages.

    PYTHONPATH=benchmarks python -m real.report bench-runs/real/smollm2-135m   # add up, print, keep
    PYTHONPATH=benchmarks python -m real.report --pages [--check]              # tables of the pages

A table of a page stands between `<!-- real: TABLE MODEL SUITE -->` and `<!-- /real -->`; TABLE is
`main` (all methods), `short` (the same in one table) or `categories` (`auto`). The numbers come from `benchmarks/results/real/`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown

from draftless.bench.near_ties import first_difference
from draftless.bench.statistics import rate_ratio, stratified_interval
from draftless.bench.tables import Table
from draftless.errors import ArtifactError
from draftless.jsonl import write_file
from real.peers import OURS, PLAIN, STOCK
from real.rows import RealRow, read_rows, read_sessions
from real.suites import HUMAN_EVAL, SPEC_BENCH

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS / "results" / "real"
PAGES = (
    BENCHMARKS.parent / "README.md",
    BENCHMARKS / "README.md",
    BENCHMARKS.parent / "docs" / "papers.md",
)
PLACE = re.compile(r"(<!-- real: (\S+) (\S+) (\S+) -->\n).*?(<!-- /real -->)", re.S)

ALL = "all"
BOTH = f"{SPEC_BENCH}+{HUMAN_EVAL}"
GREEDY = "greedy"
FIELDS = (
    *("sampling", "suite", "category", "method", "questions", "failed", "tokens"),
    *("acceptance_length", "tokens_per_second", "decode_tokens_per_second"),
    *("speed_up", "low", "high", "over"),
)
"""Of a cell: `low` and `high` are the 95 % interval of `speed_up` (null: too few questions), `over` the
autoregressive loop with the most tokens per second in that sampling and suite."""

_MACHINE = ("cpu", "num_cpus", "python", "torch", "transformers", "draftless")


def aggregate(rows: Iterable[RealRow], sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run says, small enough to commit.

    Args:
        rows: of one model.
        sessions: of the run folder.

    Raises:
        ArtifactError: there is no row, or the rows are of several models.
    """
    rows = list(rows)
    models = sorted({row.model for row in rows})
    if len(models) != 1:
        raise ArtifactError(f"a report must have rows of one model, got {models or 'no row'}")
    cells, equal = [], []
    for suite, own in _by_suite(rows).items():
        for sampling in dict.fromkeys(row.sampling for row in own):
            group = [row for row in own if row.sampling == sampling]
            cells += _cells(sampling, suite, group)
            equal += [] if suite == BOTH else _equalities(sampling, suite, group)
    told = [row for row in rows if row.error is None]
    loads = sorted(row.load for row in told) or [0.0]
    return {
        "model": models[0],
        "commands": list(dict.fromkeys(str(one["command"]) for one in sessions)),
        "commits": list(dict.fromkeys(_commit(one) for one in sessions)),
        "options": dict(sessions[-1]["options"]) if sessions else {},
        "left_out": dict(sessions[-1]["left_out"]) if sessions else {},
        "peers": dict(sessions[-1]["peers"]) if sessions else {},
        "machine": {name: sessions[-1].get(name) for name in _MACHINE} if sessions else {},
        "load": {"lowest": loads[0], "median": statistics.median(loads), "highest": loads[-1]},
        "peak_memory_bytes": _by_method(told, "peak_memory_bytes"),
        "load_s": _by_method(told, "load_s"),
        "fields": list(FIELDS),
        "cells": cells,
        "equal": equal,
    }


def _commit(session: Mapping[str, Any]) -> str:
    return f"{str(session['commit'])[:10]}{'+' if session.get('is_dirty') else ''}"


def _by_suite(rows: Sequence[RealRow]) -> dict[str, list[RealRow]]:
    """Rows by suite, and Spec-Bench and HumanEval together where both are there."""
    found = {
        suite: [row for row in rows if row.suite == suite]
        for suite in dict.fromkeys(row.suite for row in rows)
    }
    if {SPEC_BENCH, HUMAN_EVAL} <= set(found):
        found[BOTH] = found[SPEC_BENCH] + found[HUMAN_EVAL]
    return found


def _by_method(rows: Sequence[RealRow], name: str) -> dict[str, float]:
    """The largest value of each method: memory grows, and a peer may have been started twice."""
    methods = dict.fromkeys(row.method for row in rows)
    return {
        method: max(getattr(row, name) for row in rows if row.method == method)
        for method in methods
    }


def _cells(sampling: str, suite: str, group: Sequence[RealRow]) -> list[list[Any]]:
    """One cell per method over the whole suite, and one per category."""
    by_method: dict[str, dict[tuple[str, str], RealRow]] = {}
    for row in group:
        by_method.setdefault(row.method, {})[row.category, row.question_id] = row
    plain = {
        method: _rate(_measured(by_method[method].values()), "wall_s")
        for method in PLAIN
        if method in by_method and _measured(by_method[method].values())
    }
    over = max(plain, key=plain.__getitem__) if plain else None
    categories = list(dict.fromkeys(row.category for row in group))
    scopes = [categories] if suite == BOTH or len(categories) == 1 else None
    found = []
    for scope in scopes or [categories, *([one] for one in categories)]:
        for method, rows in by_method.items():
            own = {key: row for key, row in rows.items() if key[0] in scope}
            if own:
                base = by_method[over] if over else {}
                numbers = _numbers(own, base, over)
                name = ALL if scope is categories else scope[0]
                found.append([sampling, suite, name, method, *numbers])
    return found


def _measured(rows: Iterable[RealRow]) -> list[RealRow]:
    return [row for row in rows if row.error is None]


def _rate(rows: Sequence[RealRow], seconds: str) -> float:
    """Tokens per second, over the whole call or over decoding alone."""
    is_whole = seconds == "wall_s"
    tokens = sum(len(row.token_ids) if is_whole else row.decode_tokens for row in rows)
    spent: float = sum(getattr(row, seconds) for row in rows)
    return tokens / spent if spent else 0.0


def _numbers(
    own: Mapping[tuple[str, str], RealRow],
    base: Mapping[tuple[str, str], RealRow],
    over: str | None,
) -> list[Any]:
    """What stands in a cell from `questions` on."""
    rows = _measured(own.values())
    tokens, steps = sum(len(row.token_ids) for row in rows), sum(row.steps for row in rows)
    strata: dict[str, list[tuple[float, ...]]] = {}
    for key, row in own.items():
        plain = base.get(key)
        if row.error is None and plain is not None and plain.error is None:
            pair = (len(row.token_ids), row.wall_s, len(plain.token_ids), plain.wall_s)
            strata.setdefault(key[0], []).append(pair)
    speed_up: list[float | None] = [None, None, None]
    if strata:
        found = stratified_interval([np.array(one) for one in strata.values()], rate_ratio)
        bounds = (found.low, found.high) if found.is_known else (None, None)
        speed_up = [_rounded(one) for one in (found.value, *bounds)]
    return [
        *(len(own), len(own) - len(rows), tokens, _rounded(tokens / steps if steps else 0.0)),
        *(_rounded(_rate(rows, "wall_s")), _rounded(_rate(rows, "decode_s")), *speed_up, over),
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _equalities(sampling: str, suite: str, group: Sequence[RealRow]) -> list[list[Any]]:
    """Of each method: how often it is our plain loop's output, and where it first differs.

    Ids for ours and, greedy, `transformers`; the text of other peers, greedy. Other peers' sampling has
    another source of randomness: there is nothing to compare.
    """
    plain = {row.question_id: row for row in group if row.method == "none" and row.error is None}
    found = []
    for method in dict.fromkeys(row.method for row in group if row.method != "none"):
        if sampling != GREEDY and method not in OURS:
            continue
        kind = "ids" if method in (*OURS, *STOCK) else "text"
        places: list[int] = []
        pairs = [
            (row, plain[row.question_id])
            for row in group
            if row.method == method and row.error is None and row.question_id in plain
        ]
        for row, other in pairs:
            place = first_difference(row.token_ids, other.token_ids)
            if (place is not None) if kind == "ids" else (row.text != other.text):
                places.append(-1 if place is None else place)
        found.append([sampling, suite, method, kind, len(pairs) - len(places), len(pairs), places])
    return found


def write_result(file: Path, result: Mapping[str, Any]) -> None:
    """A result with one line per cell, in one piece."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, value in result.items():
        if name in ("cells", "equal"):
            lines = ",\n".join(f"  {json.dumps(one)}" for one in value)
            parts.append(f" {json.dumps(name)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    write_file(file, "{\n" + ",\n".join(parts) + "\n}\n")


def read_result(model: str, results: Path) -> dict[str, Any]:
    """What `write_result` wrote for a model.

    Raises:
        ArtifactError: there is no such file.
    """
    file = results / f"{model}.json"
    if not file.exists():
        raise ArtifactError(f"{file} must hold the result of {model}; make it with real.report")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def cells_of(result: Mapping[str, Any], **wanted: str) -> list[dict[str, Any]]:
    """The cells with these values of fields, as dictionaries."""
    found = [dict(zip(result["fields"], cell, strict=True)) for cell in result["cells"]]
    return [cell for cell in found if all(cell[name] == value for name, value in wanted.items())]


def main_table(result: Mapping[str, Any], suite: str) -> str:
    """All methods of a suite, a table per sampling."""
    parts = []
    cells = cells_of(result, suite=suite, category=ALL)
    equal = {(one[0], one[2]): one for one in result["equal"] if one[1] == suite}
    for sampling in dict.fromkeys(cell["sampling"] for cell in cells):
        own = [cell for cell in cells if cell["sampling"] == sampling]
        lines = []
        for cell in own:
            method, same = cell["method"], equal.get((sampling, cell["method"]))
            memory, load_s = result["peak_memory_bytes"].get(method), result["load_s"].get(method)
            lines.append(
                (
                    f"`{method}`",
                    f"{cell['tokens_per_second']:.1f}",
                    f"{cell['decode_tokens_per_second']:.1f}",
                    _times(cell),
                    f"{cell['acceptance_length']:.2f}",
                    f"{same[4]} of {same[5]} {same[3]}" if same else "-",
                    f"{memory / 2**20:.0f}" if memory else "-",
                    f"{load_s:.1f}" if load_s else "-",
                    str(cell["failed"]),
                )
            )
        headings = (
            *("method", "tokens/s", "decoding", f"speed-up over `{own[0]['over']}` [95 %]"),
            *("tokens per step", "output of `none`", "peak MiB", "load s", "failed"),
        )
        title = f"**{result['model']}, {suite}, {sampling}, {own[0]['questions']} questions**"
        parts += [title, markdown(Table(headings, tuple(lines)))]
    return "\n\n".join([*parts, provenance_line(result)])


def category_table(result: Mapping[str, Any], suite: str, method: str = "auto") -> str:
    """Speed-up and tokens per step of one method, category by sampling."""
    cells = cells_of(result, suite=suite, method=method)
    samplings = list(dict.fromkeys(cell["sampling"] for cell in cells))
    by_place = {(cell["category"], cell["sampling"]): cell for cell in cells}
    lines = []
    for category in dict.fromkeys(cell["category"] for cell in cells):
        found = [by_place.get((category, sampling)) for sampling in samplings]
        told = [f"{_times(one)}, {one['acceptance_length']:.2f}" if one else "-" for one in found]
        lines.append((category, *told))
    headings = ("category", *samplings)
    return f"{markdown(Table(headings, tuple(lines)))}\n\n{provenance_line(result)}"


def short_table(result: Mapping[str, Any], suite: str) -> str:
    """All methods of a suite in one table: greedy numbers, and the speed-up of every sampling."""
    cells = cells_of(result, suite=suite, category=ALL)
    samplings = list(dict.fromkeys(cell["sampling"] for cell in cells))
    lines = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = {cell["sampling"]: cell for cell in cells if cell["method"] == method}
        greedy = own.get(GREEDY)
        lines.append(
            (
                f"`{method}`",
                f"{greedy['tokens_per_second']:.0f}" if greedy else "-",
                f"{greedy['acceptance_length']:.2f}" if greedy else "-",
                *(_times(own[one]) if one in own else "-" for one in samplings),
            )
        )
    headings = ("method", "tokens/s", "tokens per step", *samplings)
    title = f"**{result['model']}, {suite}, {cells[0]['questions']} questions**"
    return "\n\n".join([title, markdown(Table(headings, tuple(lines))), provenance_line(result)])


def _times(cell: Mapping[str, Any]) -> str:
    if cell["speed_up"] is None:
        return "-"
    bounds = "?" if cell["low"] is None else f"{cell['low']:.2f}, {cell['high']:.2f}"
    return f"{cell['speed_up']:.2f}x [{bounds}]"


def provenance_line(result: Mapping[str, Any]) -> str:
    """What the numbers were measured on."""
    machine, load = result["machine"], result["load"]
    peers = ", ".join(dict.fromkeys(one for one in result["peers"].values() if one))
    return (
        f"{machine.get('cpu')}, {result['options'].get('threads')} threads, "
        f"commit {', '.join(result['commits'])}; {peers}; load average {load['lowest']:.1f} to "
        f"{load['highest']:.1f}, median {load['median']:.1f}."
    )


TABLES = {"main": main_table, "categories": category_table, "short": short_table}


def rendered(text: str, results: Path) -> str:
    """The text with every marked table replaced by what the results say."""

    def table(place: re.Match[str]) -> str:
        begin, name, model, suite, end = place.groups()
        return f"{begin}\n{TABLES[name](read_result(model, results), suite)}\n\n{end}"

    return PLACE.sub(table, text)


def write_pages(pages: Sequence[Path], results: Path, *, is_check: bool) -> None:
    """Write the tables of pages, or fail where one is stale."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new = rendered(text, results)
        if is_check and new != text:
            sys.exit(f"{page.name} differs from the results; run: python -m real.report --pages")
        if new != text:
            page.write_text(new, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, nargs="?", help="run folder")
    parser.add_argument("--output", type=Path, help="result file; results/real/MODEL.json")
    parser.add_argument("--pages", action="store_true", help="write the tables of the pages")
    parser.add_argument("--check", action="store_true", help="fail if a page is stale")
    args = parser.parse_args()
    if args.run is not None:
        result = aggregate(read_rows(args.run).values(), read_sessions(args.run))
        write_result(args.output or RESULTS / f"{result['model']}.json", result)
        for suite in dict.fromkeys(cell["suite"] for cell in cells_of(result)):
            print(f"{main_table(result, suite)}\n\n{category_table(result, suite)}\n")
    elif not args.pages:
        parser.error("give a run folder or --pages")
    if args.pages:
        write_pages(PAGES, RESULTS, is_check=args.check)


if __name__ == "__main__":
    main()
