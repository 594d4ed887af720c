"""Stops inside an accepted block, held against plain `transformers.generate` with the same stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from draftless.drafters.registry import DRAFTERS
from draftless.engine.loop import decode, make_request
from draftless.params import SamplingParams
from draftless.types import StepRecord
from support.drafters import registered
from support.matrix import NUM_PLAIN, plain_text
from support.models import FAMILIES, stock_model, target
from support.replay import ReplayDrafter
from support.tokens import byte_tokenizer

LENGTH = 5


def stock_ids(family: str, prompt: list[int], **stop: Any) -> list[int]:
    output = stock_model(family).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NUM_PLAIN,
        do_sample=False,
        pad_token_id=0,
        **stop,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["eos list", "stop strings", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_end_where_transformers_ends_them(family: str, kind: str) -> None:
    """Ids below the vocabulary's size are printable characters to the byte tokenizer."""
    plain = plain_text(family, "draftless", "fp64", "greedy", LENGTH)
    place = plain.places[0]
    text = plain.token_ids
    eos = [60, text[place - 1]] if kind != "stop strings" else []
    stops = []
    if kind != "eos list":
        end = place if kind == "stop strings" else place - 1
        # The last of these three characters is new to the text, or stands just before the EOS.
        stops = [byte_tokenizer().decode(text[end - 3 : end]), "never seen"]
    prompt = list(plain.job.prompt_ids)
    wanted = stock_ids(
        family,
        prompt,
        **({"eos_token_id": eos} if eos else {}),
        **({"stop_strings": stops, "tokenizer": byte_tokenizer()} if stops else {}),
    )
    assert 0 < len(wanted) < NUM_PLAIN
    params = SamplingParams(max_new_tokens=NUM_PLAIN, stop=stops)
    for name in [*DRAFTERS, "replay"]:
        replay = ReplayDrafter([text], [len(wanted)])
        drafter = replay if name == "replay" else registered(name)
        request = make_request(target(family), 0, prompt, params, byte_tokenizer(), eos)
        steps: list[StepRecord] = [r for _, r in decode(target(family), drafter, [request])]
        assert request.row.token_ids[len(prompt) :] == wanted, name
        last = steps[-1].verdict
        assert (last.finish_reason, last.last_kind) == ("stop", "stopped")
        if name == "replay":
            assert last.num_accepted_tokens, "the stop came inside a block"
        request.stops.take_text(is_last=True)
        whole = byte_tokenizer().decode(wanted)
        cut = [whole.index(stop) for stop in stops if stop in whole]
        assert request.stops.text == (whole[: min(cut)] if cut else whole)
