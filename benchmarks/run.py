"""Measure plain loops and drafters, interleaved in one process, on the test prompts of every domain.

    python benchmarks/run.py DATA [--model NAME=FOLDER ...] [--limit 20] [--out FOLDER]

Every prompt is run by every case before the next prompt, in an order that rotates, so that other
load on the machine hits all alike. Every row is written when it is measured: run the same command
again and it goes on where it was cut. `benchmarks/table.py` turns the rows into tables.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from methods import SAMPLINGS, Method, make_methods
from rich.progress import Progress
from rows import Case, Row, append_row, looping_tokens, read_rows

from draftless import Draftless, embedded_model_path
from draftless.provenance import collect_provenance

HERE = Path(__file__).parent
WARM_UP_PROMPTS = 1


def read_prompts(data: Path, limit: int | None) -> list[dict[str, str]]:
    """Test records, one of every domain in turn, so that a cut run is still balanced."""
    domains = sorted(file.parent.name for file in data.glob("*/test.jsonl.gz"))
    by_domain = []
    for domain in domains:
        with gzip.open(data / domain / "test.jsonl.gz", "rt", encoding="utf-8") as file:
            by_domain.append([json.loads(line) for line in file][:limit])
    longest = max(map(len, by_domain))
    return [records[i] for i in range(longest) for records in by_domain if i < len(records)]


def fitting(
    prompts: list[dict[str, str]], models: Sequence[Draftless], room: int
) -> list[dict[str, str]]:
    """The prompts that leave `room` for an answer in every model's context."""

    def fits(record: dict[str, str], model: Draftless) -> bool:
        limit = model.target.max_positions
        return limit is None or len(model.encode(record["prompt"])) + room <= limit

    kept = [record for record in prompts if all(fits(record, model) for model in models)]
    if len(kept) < len(prompts):
        print(f"{len(prompts) - len(kept)} of {len(prompts)} prompts are too long, left out")
    return kept


def measure(case: Case, method: Method, ids: list[int], seed: int) -> tuple[Row, list[int]]:
    """One run; a failure becomes a row with its error and no numbers."""
    row = Row(case, domain="", prompt_id="")
    try:
        result = method(ids, seed)
    except Exception as error:  # noqa: BLE001 - a failed run is a result, too
        row.error = f"{type(error).__name__}: {error}"
        return row, []
    new_ids = result.pop("ids")
    for name, value in result.items():
        setattr(row, name, value)
    row.num_tokens = len(new_ids)
    row.num_looping = looping_tokens(new_ids)
    row.load = round(os.getloadavg()[0], 2)
    return row, new_ids


def first_difference(ids: list[int], plain_ids: list[int]) -> int | None:
    """Index of the first token that differs, None if all are equal."""
    if ids == plain_ids:
        return None
    pairs = enumerate(zip(ids, plain_ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(plain_ids)))


class Bench:
    """All cases on all prompts, skipping what an earlier run has measured."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self._rows_file = folder / "rows.jsonl"
        self._done = {
            (row.case, row.prompt_id) for row in read_rows(self._rows_file) if row.error is None
        }
        self._session = _start_session(folder / "sessions.jsonl")
        self._methods: dict[Case, Method] = {}
        self._models: dict[Case, Draftless] = {}
        for model_name, path in args.model or [("msn", embedded_model_path())]:
            model, methods = make_methods(path, args.dtype, args.max_new_tokens, args.sampling)
            for (method, sampling), function in methods.items():
                case = Case(model_name, method, sampling, args.dtype)
                self._methods[case], self._models[case] = function, model

    def models(self) -> list[Draftless]:
        """One per checkpoint."""
        return list({id(model): model for model in self._models.values()}.values())

    def warm_up(self, prompts: list[dict[str, str]]) -> None:
        for record in prompts[:WARM_UP_PROMPTS]:
            for case, method in self._methods.items():
                measure(case, method, self._models[case].encode(record["prompt"]), 0)

    def run(self, index: int, record: dict[str, str]) -> Iterator[Row]:
        """All cases on one prompt; our plain loops first, because the rest is compared with them."""
        cases = [c for c in self._methods if (c, record["id"]) not in self._done]
        missing_plain = {
            Case(c.model, "none", c.sampling, c.dtype) for c in cases if c.method != "none"
        }
        plain_ids = {}
        shift = index % max(1, len(cases))
        rotated = [*cases[shift:], *cases[:shift]]
        results = []
        for case in dict.fromkeys([*rotated, *sorted(missing_plain, key=str)]):
            ids = self._models[case].encode(record["prompt"])
            row, new_ids = measure(case, self._methods[case], ids, seed=index)
            row.domain, row.prompt_id, row.session = record["domain"], record["id"], self._session
            if case.method == "none":
                plain_ids[case.model, case.sampling] = new_ids
            results.append((row, new_ids))
        for row, new_ids in results:
            if row.error is None:
                plain = plain_ids.get((row.case.model, row.case.sampling), new_ids)
                row.same_until = first_difference(new_ids, plain)
            if (row.case, row.prompt_id) not in self._done:
                append_row(self._rows_file, row)
                yield row


def _start_session(file: Path) -> int:
    """Write down what is measured with; returns the line's number."""
    number = len(file.read_text().splitlines()) if file.exists() else 0
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(collect_provenance()) + "\n")
    return number


def named_path(argument: str) -> tuple[str, Path]:
    name, _, path = argument.partition("=")
    return name, Path(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, help="folder with DOMAIN/test.jsonl.gz")
    add(
        "--model",
        type=named_path,
        action="append",
        metavar="NAME=FOLDER",
        help="a checkpoint and its name in the tables, repeatable; default: msn, the embedded model",
    )
    add("--limit", type=int, help="prompts per domain")
    add("--max-new-tokens", type=int, default=128)
    add("--dtype", default="bfloat16")
    add("--sampling", nargs="+", choices=SAMPLINGS, default=["greedy", "t1"])
    add("--threads", type=int, help="torch threads")
    add("--out", type=Path, default=HERE / "results" / "embedded")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(args.data, args.limit)
    bench = Bench(args.out, args)
    prompts = fitting(prompts, bench.models(), args.max_new_tokens)
    bench.warm_up(prompts)
    with Progress() as progress:
        task = progress.add_task("prompts", total=len(prompts))
        for index, record in enumerate(prompts):
            for row in bench.run(index, record):
                if row.error is not None:
                    progress.print(f"{row.case} on {row.prompt_id}: {row.error}")
            progress.advance(task)


if __name__ == "__main__":
    main()
