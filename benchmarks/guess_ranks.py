"""Where the committed tokens stood among TR-Jacobi's guesses, and the tree that this asks for.

    python benchmarks/guess_ranks.py DATA [--split valid] [--limit 20] --out FILE

For every step, the ranks of the tokens that were really committed next, depth by depth, among the
guesses that the step had. A tree path is accepted when it spells these ranks, so counting prefixes
of rank tuples gives every path's acceptance probability, and the likeliest paths are the best
tree of each size (for the guesses that the measured tree left behind).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftless import Draftless, Row, SamplingParams, embedded_model_path
from draftless.drafters.jacobi import TRJacobiDrafter
from draftless.provenance import collect_provenance
from draftless.types import DraftTree


class Recorder(TRJacobiDrafter):
    """Keeps the guesses of every step, with the place they were made at."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[tuple[int, list[list[int]]]] = []

    def propose(self, rows: Sequence[Row]) -> list[DraftTree]:
        (row,) = rows
        self.steps.append((len(row.token_ids), [list(g) for g in self._states[row].guesses]))
        return super().propose(rows)


def rank_tuples(recorder: Recorder, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Per step, the ranks of the tokens that followed, as far as each was among the guesses."""
    found = []
    for place, guesses in recorder.steps:
        ranks = []
        for depth, cell in enumerate(guesses):
            token = token_ids[place + depth] if place + depth < len(token_ids) else None
            if token not in cell:
                break
            ranks.append(cell.index(token))
        found.append(tuple(ranks))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=embedded_model_path())
    parser.add_argument("--split", default="valid")
    parser.add_argument("--limit", type=int, default=20, help="prompts per domain")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--budget", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    plain = Draftless.from_pretrained(args.model, drafter="none", dtype="bfloat16")
    counts: Counter[tuple[int, ...]] = Counter()
    num_steps, lengths = 0, {}
    for file in sorted(args.data.glob(f"*/{args.split}.jsonl.gz")):
        committed = steps = 0
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            prompts = [json.loads(line)["prompt"] for line in lines][: args.limit]
        for seed, prompt in enumerate(prompts):
            recorder = Recorder(budget=args.budget)
            model = plain.with_drafter(recorder)
            prompt_ids = model.encode(prompt)
            params = SamplingParams(temperature=args.temperature, seed=seed)
            output = model.generate(prompt_ids, params)
            for ranks in rank_tuples(recorder, [*prompt_ids, *output.token_ids]):
                counts.update(ranks[: depth + 1] for depth in range(len(ranks)))
            committed, steps = committed + len(output.token_ids), steps + len(recorder.steps)
        lengths[file.parent.name] = committed / steps
        num_steps += steps
    result = {
        "provenance": collect_provenance(),
        "num_steps": num_steps,
        "acceptance_length_by_domain": lengths,
        "paths": [["".join(map(str, p)), n / num_steps] for p, n in counts.most_common(100)],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(lengths, indent=1))
    print(" ".join(word for word, _ in result["paths"]))


if __name__ == "__main__":
    main()
