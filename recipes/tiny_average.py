"""Move trained weights a part of the way back to the plain control's.

Both come from the same base, data and order, and differ in noise and adaptive tokens alone. The way
from one to the other trades clean loss for drafting: the loss that it costs falls about with the
square of the share, the accuracy of drafts about with the share itself (docs/log.md).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from tiny_base import newest_state
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftless.manifest import MANIFEST_NAME


def masters(folder: Path) -> list[torch.Tensor]:
    """The fp32 weights of a finished training."""
    state = torch.load(folder / f"state-{newest_state(folder, 1)}-0.pt", weights_only=True)
    weights: list[torch.Tensor] = state["masters"]
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument(
        "--share", type=float, required=True, help="of the trained weights, in [0, 1]"
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.trained / "model", dtype=torch.bfloat16)
    pairs = zip(masters(args.control), masters(args.trained), strict=True)
    with torch.no_grad():
        for parameter, (control, trained) in zip(model.parameters(), pairs, strict=True):
            # The control has no rows for adaptive tokens; they stay as they were trained.
            trained[: len(control)] = torch.lerp(control, trained[: len(control)], args.share)
            parameter.copy_(trained)
    shutil.rmtree(args.output, ignore_errors=True)
    model.save_pretrained(args.output / "model")
    AutoTokenizer.from_pretrained(args.trained / "model").save_pretrained(args.output / "model")
    shutil.copy(args.trained / "model" / MANIFEST_NAME, args.output / "model")


if __name__ == "__main__":
    main()
