"""A small model, a few records and short runs for the tests of training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from draftless.cli import app
from support.tokenizer import small_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "log", "print"]


def write_model(
    folder: Path, *, is_tied: bool = False, dtype: torch.dtype = torch.float32, num_spare: int = 0
) -> Path:
    """A two-layer Llama with the small tokenizer, as `save_pretrained` writes it.

    Args:
        folder: written to.
        is_tied: the head is the embedding.
        dtype: of the checkpoint.
        num_spare: ids beyond those of the tokenizer.
    """
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + num_spare, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, tie_word_embeddings=is_tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def write_records(file: Path, count: int = 48) -> Path:
    """Records of different lengths, long enough for noise."""
    lines = []
    for number in range(count):
        prompt = " ".join(WORDS[(number + k) % 10] for k in range(2 + number % 5))
        response = " ".join(WORDS[(3 * number + 7 * k) % 10] for k in range(6 + number % 9))
        lines.append(json.dumps({"prompt": prompt, "response": response}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def in_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked process; its exit code, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_by_command(method: str, folder: Path, output: Path, *options: str) -> Result:
    """`draftless train METHOD` on the `model` and `data.jsonl` of a folder."""
    command = ["train", method, "--model", str(folder / "model"), "--data"]
    command += [str(folder / "data.jsonl"), "--output", str(output), "--max-length", "128"]
    return CliRunner().invoke(app, [*command, *options])
