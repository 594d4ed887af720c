"""A peer that knows arithmetic only: a program that speaks the benchmarks' protocol.

    python fake_peer.py LOG [--die-at N] [--fail METHOD] [--slow SECONDS]

LOG gets a line per request. At request N the process ends without an answer; the method named fails; every
answer takes SECONDS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))

from protocol import Answer, Answerer, serve, until_eos


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--fail")
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args()

    def answer(request: Mapping[str, Any]) -> Answer:
        with args.log.open("a") as log:
            log.write(json.dumps(request) + "\n")
        number = len(args.log.read_text().splitlines())
        if number == args.die_at:
            os._exit(7)
        if request["method"] == args.fail:
            raise ValueError("no such luck")
        time.sleep(args.slow)
        first = sum(request["ids"]) % 100
        made = [first + place for place in range(request["max_new_tokens"])]
        token_ids = until_eos(made, request["eos_token_ids"])
        return {
            "token_ids": token_ids,
            "wall_s": 1.0,
            "prefill_s": 0.25,
            "decode_s": 0.75,
            "decode_tokens": len(token_ids),
            "steps": len(token_ids),
        }

    def load() -> tuple[Answerer, str]:
        sys.stdout.write("a library's own words\n")
        return answer, "fake 1"

    serve(load)


if __name__ == "__main__":
    main()
