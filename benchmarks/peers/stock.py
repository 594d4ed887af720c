"""Adapter of `transformers`: `generate`, plain and with its prompt lookup."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol import Answer, Answerer, serve, until_eos

# Prompt lookup's own settings in its paper's repository and in `transformers`' documentation.
METHODS: dict[str, dict[str, int]] = {
    "transformers": {},
    "transformers prompt-lookup": {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3},
}


class _Steps:
    """A streamer that notes when every step ended and how many tokens it brought."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends: list[float] = []
        self._has_prompt = False

    def put(self, value: Any) -> None:
        """The prompt first, then the tokens of every step."""
        if self._has_prompt:
            self.tokens.append(value.numel())
            self.ends.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        """The clock stops outside."""


def load_stock(path: Path, threads: int, dtype: str | None) -> Answerer:
    """A stock model under the attention that `transformers` chooses by itself."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto").eval()
    model.generation_config = GenerationConfig()  # a checkpoint's own would fill in penalties

    def answer(request: Mapping[str, Any]) -> Answer:
        ids = torch.tensor([request["ids"]])
        eos_ids = list(request["eos_token_ids"])
        is_sampled = request["temperature"] > 0
        chosen = {"temperature": request["temperature"], "top_p": request["top_p"], "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=request["max_new_tokens"],
            do_sample=is_sampled,
            eos_token_id=eos_ids or None,
            pad_token_id=eos_ids[0] if eos_ids else 0,
            **(chosen if is_sampled else {}),
            **METHODS[request["method"]],
        )
        steps = _Steps()
        torch.manual_seed(request["seed"] % 2**63)
        begin = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=steps,
            )
        end = time.perf_counter()
        token_ids = until_eos(made[0, ids.shape[1] :].tolist(), eos_ids)
        return {
            "token_ids": token_ids,
            "wall_s": end - begin,
            "prefill_s": steps.ends[0] - begin,
            "decode_s": end - steps.ends[0],
            "decode_tokens": max(0, len(token_ids) - steps.tokens[0]),
            "steps": len(steps.ends),
        }

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype")
    args = parser.parse_args()

    def load() -> tuple[Answerer, str]:
        import transformers

        answer = load_stock(args.model, args.threads, args.dtype)
        return answer, f"transformers {transformers.__version__}"

    serve(load)


if __name__ == "__main__":
    main()
