"""The policies that KNN-SSD is compared with: skip files `mixed`, `fixed`, `random`, and a store `own`.

    python recipes/skip_policies.py --model M --store STORE --fixed sql --output FOLDER

`mixed` is the general set of a store that `draftless calibrate anchors` built, `fixed` the set that was
searched for one domain, and `random` a set of the size of `mixed`: the median of 20 on the texts that
the search saw, with the threshold, depth and siblings that are best for it there. `own` is the store
with every domain's own set, also where that was not clearly better than the general one (the paper).
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from draftless import Draftless
from draftless.calibration.costs import CostTable
from draftless.calibration.margins import random_sets
from draftless.calibration.proposals import eligible_sublayers
from draftless.calibration.rounds import RoundsObjective
from draftless.calibration.texts import read_texts, split_texts
from draftless.drafters.anchor_store import GENERAL, AnchorStore
from draftless.drafters.layer_skip import read_skip_file
from draftless.jsonl import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--fixed", required=True, help="a domain of the store")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, label in (("mixed", GENERAL), ("fixed", args.fixed)):
        shutil.copyfile(args.store / label / "skip.json", args.output / f"{name}.json")

    store = AnchorStore.load(args.store)
    own = {label: read_skip_file(args.store / label / "skip.json") for label in store.settings}
    replace(store, settings=own).save(args.output / "own")

    mixed = json.loads((args.output / "mixed.json").read_text(encoding="utf-8"))
    options = mixed["options"]
    target = Draftless.from_pretrained(args.model, drafter="none").target
    objective = RoundsObjective(
        target,
        split_texts(read_texts(args.store / "texts.json", {}).texts),
        CostTable.from_dict(mixed["costs"]),
        options["depth"],
        options["windows_per_text"],
        options["seed"],
    )
    num_skipped = read_skip_file(args.output / "mixed.json").skip_set.num_skipped
    # The first and the last layer stay, whatever the search was allowed: the first one is needed.
    eligible = eligible_sublayers(target.num_layers, protect_ends=True)
    chosen = random_sets(eligible, num_skipped, 20, seed=1)
    found = sorted((objective.evaluate(one) for one in chosen), key=lambda one: one.value)
    setting = found[len(found) // 2].setting
    values = [one.value for one in found]
    data = {"format_version": 1, "setting": setting.to_dict(), "values": values, **{
        name: mixed[name] for name in ("model_fingerprint", "provenance")
    }}  # fmt: skip
    write_json(args.output / "random.json", data)


if __name__ == "__main__":
    main()
