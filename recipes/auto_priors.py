"""Fits the first weights of `auto` (`drafters/priors.py`) to what it meets on some prompts.

    python recipes/auto_priors.py --suite ../shared/data --split valid --per-domain 20 --skip 8

The embedded model answers validation prompts, greedy and at temperature 1, drafted by `auto`. At every
node of the walked paths the candidates, the cells that named them and the target's token are kept;
the softmax of `fusion` is fitted to them, with a pull to the weights as they are where a cell was
seldom seen. Answers that mostly repeat themselves are left out. Prints the log-loss before and after,
for the fitted prompts and for `--skip` others of each domain, and rewrites the weights with `--write`.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from draftless import Draftless, SamplingParams
from draftless.bench.questions import Question, balanced, read_questions
from draftless.drafters import priors
from draftless.drafters.fusion import NUM_CELLS, Found, Fusion
from draftless.engine.latency import prices_of
from draftless.loops import LOOP_LIMIT, looping_tokens

Node = tuple[Found, int, int]
"""Candidates with their cells, the cell of none of them, and the target's token."""

TABLES = {0.0: "GREEDY_WEIGHTS", 1.0: "COUPLED_WEIGHTS"}
PULL = 2.0  # nodes that the weight as it is counts as, per cell
MAX_NEW_TOKENS = 96


@contextmanager
def overheard(nodes: list[Node]) -> Iterator[None]:
    """Inside, every node that a request learns from is kept."""
    learn = Fusion.learn

    def keep(self: Fusion, found: Found, none_cell: int, token_id: int) -> None:
        nodes.append((list(found), none_cell, token_id))
        learn(self, found, none_cell, token_id)

    Fusion.learn = keep  # type: ignore[method-assign]
    try:
        yield
    finally:
        Fusion.learn = learn  # type: ignore[method-assign]


def collect(model: Draftless, questions: Sequence[Question], temperature: float) -> list[Node]:
    """Nodes of the answers to some questions, a table of successors passing from one to the next."""
    params = SamplingParams(temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=1)
    kept: list[Node] = []
    for question in questions:
        nodes: list[Node] = []
        with overheard(nodes):
            ids = model.generate(model.encode(question.turns[0]), params).token_ids
        if looping_tokens(ids) < LOOP_LIMIT * len(ids):
            kept += nodes
    return kept


class Nodes:
    """Nodes as tensors: a score per (node, token), and which cells it is the sum of."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        places, cells, owners, right = [], [], [], []
        none_cells = torch.tensor([none_cell for _, none_cell, _ in nodes])
        for index, (found, _, token_id) in enumerate(nodes):
            known: dict[int, int] = {}
            for candidate, cell in found:
                if candidate not in known:
                    known[candidate] = len(owners)
                    owners.append(index)
                places.append(known[candidate])
                cells.append(cell)
            right.append(known.get(token_id, -1))
        self.places, self.cells = torch.tensor(places), torch.tensor(cells)
        self.owners, self.right = torch.tensor(owners), torch.tensor(right)
        self.none_cells = none_cells

    def losses(self, weights: torch.Tensor) -> torch.Tensor:
        """Nats per node, `[nodes]`."""
        scores = weights.new_zeros(len(self.owners)).index_add(0, self.places, weights[self.cells])
        none = weights[self.none_cells]
        totals = none.exp().index_add(0, self.owners, scores.exp())
        own = torch.where(self.right >= 0, scores[self.right.clamp(min=0)], none)
        return totals.log() - own


def fit(nodes: Nodes, start: torch.Tensor) -> torch.Tensor:
    """Weights that make the target's tokens likeliest, `[cells]`."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nodes.losses(weights).sum() + PULL / 2 * (weights - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def rewritten(text: str, name: str, weights: Sequence[float]) -> str:
    """The source of `priors.py` with other numbers in one table; its layout and comments stay."""
    begin = text.index(f"{name}: ")
    end = text.index("\n)\n", begin)
    numbers = iter(weights)
    table = re.sub(r"-?\d+\.\d\d", lambda _: f"{next(numbers):.2f}", text[begin:end])
    assert next(numbers, None) is None, "as many numbers as cells"
    return text[:begin] + table + text[end:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--suite", type=Path, required=True, help="folder with a folder per domain")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--per-domain", type=int, default=20, help="prompts to fit to")
    parser.add_argument("--skip", type=int, default=8, help="prompts before them, to compare with")
    parser.add_argument("--write", action="store_true", help="rewrite drafters/priors.py")
    options = parser.parse_args()

    torch.set_num_threads(1)
    plain = Draftless.from_pretrained(compile=True, drafter="none")
    prices = prices_of(plain.target)
    files = sorted(options.suite.glob(f"*/{options.split}.jsonl.gz"))
    found = [
        question for file in files for question in read_questions(file, category=file.parent.name)
    ]
    domains: dict[str, list[Question]] = defaultdict(list)
    for question in balanced(found, len(files) * (options.skip + options.per_domain)):
        domains[question.category].append(question)
    parts = {
        "held out": [q for own in domains.values() for q in own[: options.skip]],
        "fitted": [q for own in domains.values() for q in own[options.skip :]],
    }
    source = Path(priors.__file__)
    text = source.read_text(encoding="utf-8")
    for temperature, name in TABLES.items():
        start = torch.tensor(getattr(priors, name), dtype=torch.float64)
        assert len(start) == NUM_CELLS
        met = {}
        for part, questions in parts.items():
            model = plain.with_drafter("auto", {"prices": prices})
            met[part] = Nodes(collect(model, questions, temperature))
        weights = fit(met["fitted"], start)
        for part, nodes in met.items():
            before, after = (nodes.losses(w).mean().item() for w in (start, weights))
            print(f"{name} {part}: {len(nodes.right)} nodes, {before:.3f} to {after:.3f} nats")
        text = rewritten(text, name, weights.tolist())
    if options.write:
        source.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
