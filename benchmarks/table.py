"""Write the tables of README.md and benchmarks/README.md from the rows of a result folder.

python benchmarks/table.py            # write
python benchmarks/table.py --check    # fail if a table is not what the rows say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rows import read_rows, summarise

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "embedded"
README, FULL = HERE.parent / "README.md", HERE / "README.md"
BEGIN, END = "<!-- benchmark: {name} -->", "<!-- /benchmark -->"

SAMPLING_NAMES = {"greedy": "greedy", "t1": "T = 1", "t1-p0.9": "T = 1, top-p 0.9"}
HEADLINE = ("transformers", "transformers prompt lookup", "none", "prompt-lookup", "tr-jacobi")

Summary = dict[str, Any]


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first two columns are text, the rest numbers."""
    rule = ["---" if i < 2 else "---:" for i in range(len(headings))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines))


def interval(value: Sequence[float]) -> str:
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"


def main_table(summaries: Sequence[Summary]) -> str:
    """The headline: every method in bf16, greedy and at temperature 1."""
    lines = [
        [
            f"`{s['method']}`",
            f"{s['model']}, {SAMPLING_NAMES[s['sampling']]}",
            f"{s['acceptance_length']:.2f}",
            f"{s['tokens_per_second']:.0f}",
            interval(s["speed_up"]),
        ]
        for s in summaries
        if s["dtype"] == "bfloat16" and s["sampling"] in ("greedy", "t1")
        if s["method"] in HEADLINE
        if "speed_up" in s
    ]
    headings = ["method", "model, sampling", "tokens per step", "tokens/s", "speed-up (95 %)"]
    return markdown(headings, lines)


def all_table(summaries: Sequence[Summary]) -> str:
    """Every case."""
    lines = [
        [
            f"`{s['method']}`",
            f"{s['model']}, {SAMPLING_NAMES[s['sampling']]}, {s['dtype']}",
            f"{s['acceptance_length']:.2f}",
            f"{s['tokens_per_second']:.0f}",
            interval(s["speed_up"]),
            str(s["plain"]),
            f"{s['loop_share']:.1%}",
            f"{s['num_left_out']} of {s['num_prompts']}",
            f"{s['num_different']}",
            f"{s['num_failed']}",
        ]
        for s in summaries
        if "speed_up" in s
    ]
    headings = ["method", "model, sampling, dtype", "tokens per step", "tokens/s"]
    headings += ["speed-up (95 %)", "over", "loop share", "left out", "differ", "failed"]
    return markdown(headings, lines)


def domain_table(summaries: Sequence[Summary]) -> str:
    """TR-Jacobi by domain."""
    chosen = [s for s in summaries if s["method"] == "tr-jacobi" and "speed_up" in s]
    domains = sorted({d for s in chosen for d in s["speed_up_by_domain"]})
    lines = [
        [
            s["model"],
            f"{SAMPLING_NAMES[s['sampling']]}, {s['dtype']}",
            *(
                f"{s['acceptance_length_by_domain'][d]:.2f} / {s['speed_up_by_domain'][d]:.2f}x"
                if d in s["speed_up_by_domain"]
                else "-"
                for d in domains
            ),
        ]
        for s in chosen
    ]
    return markdown(["model", "sampling, dtype", *domains], lines)


def stage_table(summaries: Sequence[Summary]) -> str:
    """Where a step's time goes in our engine, and what becomes of the acceptance length."""
    stages = ("propose", "forward", "verify", "commit", "observe")
    lines = [
        [
            f"`{s['method']}`",
            f"{s['model']}, {SAMPLING_NAMES[s['sampling']]}, {s['dtype']}",
            *(f"{s['stage_share'][stage]:.1%}" for stage in stages),
            f"{s['overhead_share']:.1%}",
            f"{s['nodes_per_step']:.1f}",
            f"{s['plain_forward_ms']:.2f} / {s['forward_ms']:.2f}",
            interval(s["decode_speed_up_over_none"]),
            f"{s['efficiency']:.2f}",
        ]
        for s in summaries
        if "stage_share" in s
    ]
    headings = ["method", "model, sampling, dtype", *stages, "all but forward", "nodes"]
    headings += ["T(1) / T(W) ms", "decoding alone over `none`", "efficiency"]
    return markdown(headings, lines)


def machine_line(folder: Path) -> str:
    """What the rows were measured on."""
    sessions = [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]
    rows = read_rows(folder / "rows.jsonl")
    loads = sorted(row.load for row in rows)
    last = sessions[-1]
    facts = {
        key: last[key] for key in ("cpu", "num_threads", "torch", "transformers") if key in last
    }
    return (
        f"{', '.join(f'{key} {value}' for key, value in facts.items())}; commit "
        f"{str(last.get('commit', '?'))[:10]}; load average while measuring "
        f"{loads[0]:.1f} to {loads[-1]:.1f}, median {loads[len(loads) // 2]:.1f}."
    )


TABLES: dict[str, Callable[[Sequence[Summary]], str]] = {
    "main": main_table,
    "all": all_table,
    "domains": domain_table,
    "stages": stage_table,
}


def rendered(text: str, summaries: Sequence[Summary], machine: str) -> str:
    """The text with every marked table replaced by what the rows say."""
    for name, table in TABLES.items():
        begin = BEGIN.format(name=name)
        if begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(END)
            text = f"{before}{begin}\n\n{table(summaries)}\n\n{machine}\n\n{END}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not (args.results / "rows.jsonl").exists():
        sys.exit(f"no rows in {args.results}; measure first: python benchmarks/run.py DATA")
    summaries = summarise(read_rows(args.results / "rows.jsonl"))
    machine = machine_line(args.results)
    for path in (README, FULL):
        text = path.read_text(encoding="utf-8")
        new = rendered(text, summaries, machine)
        if args.check and new != text:
            sys.exit(f"{path} is not what the rows say; run: python benchmarks/table.py")
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
