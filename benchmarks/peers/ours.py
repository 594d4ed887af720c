"""Adapter of Draftless: `none`, or any drafter by its name, each request with a fresh one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol import Answer, Answerer, serve


def load_model(path: Path | str, *, threads: int, dtype: str | None, is_compiled: bool) -> Any:
    """The one place where the benchmarks of real models load one of ours.

    Args:
        path: checkpoint folder.
        threads: of torch.
        dtype: None keeps the checkpoint's.
        is_compiled: compile the forward pass.
    """
    from draftless import Draftless
    from draftless.engine.threads import use_threads

    use_threads(threads)
    return Draftless.from_pretrained(path, drafter="none", dtype=dtype, compile=is_compiled)


def answer_with(model: Any, request: Mapping[str, Any]) -> Answer:
    """One request; the drafter has met nothing before it."""
    from draftless import Draftless, SamplingParams

    drafted = model.with_drafter(request["method"])
    # Without a tokenizer no text is decoded while the clock runs; no peer decodes there.
    silent = Draftless(drafted.target, None, drafted.drafter, drafted.manifest, drafted.folder)
    params = SamplingParams(
        max_new_tokens=request["max_new_tokens"],
        temperature=request["temperature"],
        top_p=request["top_p"],
        seed=request["seed"],
        eos_token_ids=tuple(request["eos_token_ids"]),
    )
    begin = time.perf_counter()
    output = silent.generate(list(request["ids"]), params)
    wall_s = time.perf_counter() - begin
    prefill_s = output.stats.time_s["prefill"]
    return {
        "token_ids": output.token_ids,
        "wall_s": wall_s,
        "prefill_s": prefill_s,
        "decode_s": wall_s - prefill_s,
        "decode_tokens": len(output.token_ids),
        "steps": output.stats.num_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype")
    parser.add_argument("--eager", action="store_true", help="do not compile the forward pass")
    args = parser.parse_args()

    def load() -> tuple[Answerer, str]:
        import draftless

        model = load_model(
            args.model, threads=args.threads, dtype=args.dtype, is_compiled=not args.eager
        )
        is_compiled = "compiled" if model.target.is_compiled else "eager"
        version = f"draftless {draftless.__version__}, {is_compiled}"
        return (lambda request: answer_with(model, request)), version

    serve(load)


if __name__ == "__main__":
    main()
