"""What searches of skip sets found, per domain, and what is left of it against better chance.

    python recipes/skip_margins.py --model M --store STORE --output FILE

`draftless calibrate` compares with random sets among all that the search could choose. Where that
includes the first layer, which no draft can do without, most random sets are useless; here they keep the
first and the last layer.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from draftless import Draftless
from draftless.calibration.costs import CostTable
from draftless.calibration.domain_settings import mixed_texts
from draftless.calibration.margins import compare, random_sets
from draftless.calibration.proposals import eligible_sublayers
from draftless.calibration.rounds import RoundsObjective
from draftless.calibration.texts import OwnText, read_texts, split_texts
from draftless.drafters.anchor_store import GENERAL, AnchorStore
from draftless.drafters.layer_skip import read_skip_file
from draftless.engine.target import TargetModel
from draftless.jsonl import write_json
from draftless.provenance import collect_provenance


def margins(target: TargetModel, file: Path, texts: list[OwnText]) -> dict[str, object]:
    """One search: what it found, and its margins over random sets of both kinds."""
    data = json.loads(file.read_text(encoding="utf-8"))
    options, setting = data["options"], read_skip_file(file)
    objective = RoundsObjective(
        target,
        split_texts(texts),
        CostTable.from_dict(data["costs"]),
        options["depth"],
        options["windows_per_text"],
        options["seed"],
    )
    eligible = eligible_sublayers(target.num_layers, protect_ends=True)
    size = min(setting.skip_set.num_skipped, len(eligible))
    others = random_sets(eligible, size, 20, seed=1)
    settings = [setting, *(objective.evaluate(one).setting for one in others)]
    tokens, seconds = map(np.stack, zip(*(objective.totals(one) for one in settings), strict=True))
    compared = compare(tokens, seconds, seed=1)
    return {
        "setting": data["setting"],
        "found": data["found"],
        "num_trials": data["tried"]["num_trials"],
        "seconds": data["tried"]["seconds"],
        "random_sets": data["random_sets"],
        "random_sets_with_ends": {**asdict(compared), "num_skipped": size, "num_sets": len(others)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    target = Draftless.from_pretrained(args.model, drafter="none").target
    store = AnchorStore.load(args.store)
    texts: dict[str, list[OwnText]] = {label: [] for label in store.settings}
    for text in read_texts(args.store / "texts.json", {}).texts:
        texts[text.domain].append(text)
    searches = {}
    for label, own in {GENERAL: mixed_texts(texts), **texts}.items():
        searches[label] = margins(target, args.store / label / "skip.json", own)
        over = searches[label]["random_sets_with_ends"]["over_mean"]  # type: ignore[index]
        print(label, over, flush=True)
    result = {
        "provenance": collect_provenance(),
        "searches": searches,
        "store": {"facts": store.facts, "provenance": store.provenance},
    }
    write_json(args.output, result)


if __name__ == "__main__":
    main()
