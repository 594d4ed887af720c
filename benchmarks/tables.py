"""Write the tables of README.md and benchmarks/README.md from the committed run folders.

    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # fail if a table is not what the rows say

A table stands between `<!-- benchmark: TABLE RUN [SAMPLING] -->` and `<!-- /benchmark -->`, where
RUN is a folder of `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from draftless.bench.answers import answers, identity, times
from draftless.bench.auto_tables import best_single_table, width_sweep_table
from draftless.bench.averages import of_categories
from draftless.bench.mixes import stream_summaries
from draftless.bench.price_tables import measured_on, width_table
from draftless.bench.routing import known_labels, routings
from draftless.bench.rows import Row, last_prices, read_rows, read_sessions
from draftless.bench.stream_tables import routing_table, skip_table, stream_table
from draftless.bench.summary import CaseSummary, summarise
from draftless.bench.tables import Table, cases_table, stage_table, sweep_table
from draftless.errors import ArtifactError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = (HERE.parent / "README.md", HERE / "README.md", HERE.parent / "docs" / "papers.md")
PLACE = re.compile(
    r"(<!-- benchmark: (\S+) (\S+)(?: ([^>\n]+?))?? -->\n).*?(<!-- /benchmark -->)", re.S
)

FIELD = ("code", "sql")
"""The paper's field of SDSAT: the table `field` is `main` over these domains."""

CLAIMS = {
    "prompt-lookup": "1.75 tokens per step, 1.66x (Spec-Bench's report: Vicuna 7B, A100)",
    "recycling": "2.73 tokens per step, 2.22x (Spec-Bench's report: Vicuna 7B, A100)",
    "tr-jacobi": "2.3x to 2.7x (MSN paper, abstract)",
    "sdsat": "above 3.0x (7B) and 3.5x (13B), on code (SDSAT paper, abstract)",
}
"""What a drafter's paper, or Spec-Bench, reports (greedy)."""


def markdown(table: Table) -> str:
    """A Markdown table: names to the left, numbers to the right."""
    rule = ["---" if i < table.num_names else "---:" for i in range(len(table.headings))]
    lines = (table.headings, rule, *table.lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main_table(cases: Sequence[CaseSummary]) -> str:
    """Every method: is it the same text, and how fast is it."""
    lines = [
        (
            f"`{case.case.method}`",
            f"{case.acceptance_length:.2f}" if case.acceptance_length else "-",
            f"{case.tokens_per_second:.0f}" if case.tokens_per_second else "-",
            times(case.speed_up) if case.speed_up else "-",
            identity(case.trust) if case.trust.num_compared else "-",
        )
        for case in cases
    ]
    headings = ("method", "tokens per step", "tokens/s", "speed-up [95 %]", "output against plain")
    return markdown(Table(headings, tuple(lines)))


def domain_table(cases: Sequence[CaseSummary]) -> str:
    """Speed-up with its interval and tokens per step, domain by method."""
    drafted = [case for case in cases if not case.is_plain]
    domains = sorted({domain for case in drafted for domain in case.by_category})
    lines = []
    for domain in domains:
        found = [case.by_category.get(domain) for case in drafted]
        cells = [
            f"{times(one.speed_up)}, {one.acceptance_length:.2f}" if one and one.speed_up else "-"
            for one in found
        ]
        lines.append((domain, *cells))
    headings = ("domain", *(f"`{case.case.method}`" for case in drafted))
    return markdown(Table(headings, tuple(lines)))


def papers_table(cases: Sequence[CaseSummary]) -> str:
    """Reported against measured."""
    lines = [
        (
            f"`{case.case.method}`",
            CLAIMS[case.case.method],
            f"{case.acceptance_length:.2f} tokens per step, {times(case.speed_up)}",
        )
        for case in cases
        if case.case.method in CLAIMS and case.speed_up
    ]
    return markdown(Table(("drafter", "reported", "here"), tuple(lines), num_names=3))


def routes_table(cases: Sequence[CaseSummary], rows: Sequence[Row], run: Path) -> str:
    """Requests by domain and route."""
    names = {case.case for case in cases}
    own = [row for row in rows if row.case in names]
    return markdown(routing_table(routings(own, known_labels(read_sessions(run)))))


def prices_table(run: Path) -> str:
    """T(W) on the machine of the run."""
    prices = last_prices(read_sessions(run))
    if prices is None:
        raise ArtifactError(f"{run} was measured before sessions had a price list")
    return f"{markdown(width_table(prices))}\n\n{measured_on(prices)}"


TABLES: dict[str, Callable[[Sequence[CaseSummary], Sequence[Row], Path], str]] = {
    "main": lambda cases, *_: main_table(cases),
    "field": lambda cases, *_: main_table(cases),
    "sweep": lambda cases, *_: markdown(sweep_table(cases, "k")),
    "domains": lambda cases, *_: domain_table(cases),
    "papers": lambda cases, *_: papers_table(cases),
    "all": lambda cases, *_: markdown(cases_table(cases)),
    "stages": lambda cases, *_: markdown(stage_table(cases)),
    "skip": lambda cases, *_: markdown(skip_table(cases)),
    "streams": lambda cases, rows, _: markdown(stream_table(stream_summaries(rows, cases))),
    "routes": routes_table,
    "auto": lambda cases, rows, _: markdown(best_single_table(cases, rows)),
    "widths": lambda cases, rows, _: markdown(width_sweep_table(cases, rows, "max_width")),
    "prices": lambda *given: prices_table(given[2]),
}
"""What a table shows of the cases of a group, the rows of the run, and its folder."""


def provenance_line(folder: Path, rows: Sequence[Row]) -> str:
    """What the rows were measured on."""
    last = read_sessions(folder)[-1]
    loads = sorted(row.load for row in rows)
    facts = ", ".join(
        f"{name} {last[name]}" for name in ("cpu", "num_threads", "torch", "transformers")
    )
    return (
        f"`{last['command']}`, commit {str(last['commit'])[:10]}; {facts}; load average while "
        f"measuring {loads[0]:.1f} to {loads[-1]:.1f}, median {loads[len(loads) // 2]:.1f}."
    )


def rendered(text: str, results: Path = RESULTS) -> str:
    """The text with every marked table replaced by what the rows say."""

    def table(place: re.Match[str]) -> str:
        begin, name, run, sampling, end = place.groups()
        rows = read_rows(results / run)
        summary = summarise(of_categories(rows, FIELD) if name == "field" else rows)
        parts = []
        for group, cases in summary.groups().items():
            if sampling in (None, group.sampling):
                told = next(one.text for one in answers(summary) if one.group == group)
                parts += [
                    f"**{group.model}, {group.sampling}, {group.dtype}.** {told}",
                    TABLES[name](cases, rows, results / run),
                ]
        parts.append(provenance_line(results / run, rows))
        return begin + "\n" + "\n\n".join(parts) + "\n\n" + end

    return PLACE.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = rendered(text)
        if args.check and new != text:
            sys.exit(f"{page.name} is not what the rows say; run: python benchmarks/tables.py")
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
