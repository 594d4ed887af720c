"""The output is a function of weights, prompt, parameters and seed, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from draftless.drafters.registry import DRAFTERS, make_drafter
from draftless.params import SamplingParams
from support.drafters import registered
from support.driving import Job, run
from support.models import prompt_ids, target

JOBS = [
    Job(prompt_ids(3), SamplingParams(max_new_tokens=9)),
    Job(prompt_ids(40), SamplingParams(max_new_tokens=25, temperature=1.0, seed=1)),
    Job(prompt_ids(1), SamplingParams(max_new_tokens=17, temperature=0.7, top_p=0.9, seed=2)),
    Job(prompt_ids(18), SamplingParams(max_new_tokens=1, repetition_penalty=1.5)),
    Job(prompt_ids(18), SamplingParams(max_new_tokens=30, temperature=1.0, seed=1, top_k=4)),
    Job(prompt_ids(7), SamplingParams(max_new_tokens=22, bad_words_ids=[[9], [2, 3]])),
]
FAMILIES = ["llama", "mistral"]


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_batch(family: str, name: str) -> None:
    """Greedy and sampled rows of any length side by side, in any order, that end at any time."""
    drafter = registered(name)
    alone = [run(target(family), make_drafter("none"), [job])[0].token_ids for job in JOBS]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [3, 3, 1], [4, 0]):
        results = run(target(family), drafter, [JOBS[i] for i in order])
        assert [r.token_ids for r in results] == [alone[i] for i in order]
        assert [r.finish_reason for r in results] == ["length"] * len(order)


@pytest.mark.parametrize("options", [{"budget": 2}, {"budget": 5, "depth": 2}, {"top_k": 1}, {}])
def test_of_the_tree(options: dict[str, int]) -> None:
    plain = run(target("llama"), make_drafter("none"), JOBS)
    drafted = run(target("llama"), make_drafter("tr-jacobi", options), JOBS)
    assert [r.token_ids for r in drafted] == [r.token_ids for r in plain]


def test_of_global_random_state_which_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = run(target("llama"), registered("tr-jacobi"), JOBS)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    second = run(target("llama"), registered("tr-jacobi"), JOBS)
    assert [r.token_ids for r in first] == [r.token_ids for r in second]


def test_seed_and_sample_index_make_other_texts() -> None:
    texts = {
        tuple(
            run(
                target("llama"),
                make_drafter("none"),
                [
                    Job(
                        prompt_ids(5),
                        SamplingParams(
                            max_new_tokens=20, temperature=1.0, seed=seed, sample_index=index
                        ),
                    )
                ],
            )[0].token_ids
        )
        for seed in (0, 1)
        for index in (0, 1)
    }
    assert len(texts) == 4


def test_a_seed_that_was_drawn_gives_the_same_text_again() -> None:
    job = Job(prompt_ids(5), SamplingParams(max_new_tokens=20, temperature=1.0))
    (first,) = run(target("llama"), make_drafter("none"), [job])
    seed = first.request.row.params.seed
    assert seed is not None
    (other,) = run(target("llama"), make_drafter("none"), [job])
    assert other.request.row.params.seed != seed
    again = Job(job.prompt_ids, SamplingParams(max_new_tokens=20, temperature=1.0, seed=seed))
    assert run(target("llama"), registered("tr-jacobi"), [again])[0].token_ids == first.token_ids
