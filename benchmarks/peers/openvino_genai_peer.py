"""Adapter of OpenVINO GenAI: its pipeline, plain or with prompt lookup, on a converted model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol import Answer, Answerer, serve, until_eos

# The sizes of prompt lookup's paper, as for `transformers`.
LOOKUP = {"num_assistant_tokens": 10, "max_ngram_size": 3}


def load_pipeline(path: Path, threads: int, is_lookup: bool) -> Answerer:
    """A pipeline on the CPU, at the precision that OpenVINO chooses for it."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if is_lookup:
        options["prompt_lookup"] = True
    pipeline = genai.LLMPipeline(str(path), "CPU", **options)

    def answer(request: Mapping[str, Any]) -> Answer:
        eos_ids = list(request["eos_token_ids"])
        config = genai.GenerationConfig()
        config.max_new_tokens = request["max_new_tokens"]
        config.stop_token_ids = set(eos_ids)
        config.apply_chat_template = False
        config.rng_seed = request["seed"] % 2**32
        if request["temperature"] > 0:
            config.do_sample = True
            config.temperature, config.top_p = request["temperature"], request["top_p"]
        if is_lookup:
            config.num_assistant_tokens = LOOKUP["num_assistant_tokens"]
            config.max_ngram_size = LOOKUP["max_ngram_size"]
        ids = openvino.Tensor(np.array([request["ids"]], dtype=np.int64))
        mask = openvino.Tensor(np.ones((1, len(request["ids"])), dtype=np.int64))
        begin = time.perf_counter()
        found = pipeline.generate(genai.TokenizedInputs(ids, mask), config)
        wall_s = time.perf_counter() - begin
        token_ids = until_eos([int(one) for one in found.tokens[0]], eos_ids)
        metrics = found.perf_metrics
        prefill_s = metrics.get_ttft().mean / 1e3
        return {
            "token_ids": token_ids,
            "wall_s": wall_s,
            "prefill_s": prefill_s,
            "decode_s": wall_s - prefill_s,
            "decode_tokens": max(0, len(token_ids) - 1),
            "steps": len(metrics.raw_metrics.token_infer_durations) or len(token_ids),
        }

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder of optimum-intel's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lookup", action="store_true")
    args = parser.parse_args()

    def load() -> tuple[Answerer, str]:
        import openvino_genai

        answer = load_pipeline(args.model, args.threads, args.lookup)
        return answer, f"openvino-genai {openvino_genai.__version__}"

    serve(load)


if __name__ == "__main__":
    main()
