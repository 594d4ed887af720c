"""Batches with noise: exact tensors, documents kept apart."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
)

from draftless.training.adaptive_tokens import highest_id
from draftless.training.block_places import TokenRun
from draftless.training.draft_collator import Batch, CollatorEpochs, DraftCollator
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator, pack_documents

PAD = 2
SPECIAL = frozenset({0, 1, PAD})


class FixedPlanner(NoisePlanner):
    """Plans what the test says: runs by the first id of the document."""

    def __init__(self, mode: Any, runs: dict[int, list[TokenRun]]) -> None:
        super().__init__(NoiseSettings(mode=mode), SPECIAL)
        object.__setattr__(self, "runs", runs)

    def plan(self, ids: Any, labels: Any, epoch: int) -> list[TokenRun]:  # noqa: ARG002
        return self.runs.get(ids[0], [])  # type: ignore[attr-defined]


def feature(first: int, num_prompt: int, num_response: int) -> dict[str, list[int]]:
    ids = list(range(first, first + num_prompt + num_response))
    return {"input_ids": ids, "labels": [-100] * num_prompt + ids[num_prompt:]}


def collator(planner: NoisePlanner) -> DraftCollator:
    return DraftCollator(PaddingCollator(PAD), planner, PAD)


def test_inline_overwrites_inputs_and_nothing_else() -> None:
    planner = FixedPlanner("inline", {10: [TokenRun(3, (11, 10))]})
    batch = collator(planner)([feature(10, 2, 5), feature(20, 1, 2)])
    assert batch["input_ids"].tolist() == [
        [10, 11, 12, 11, 10, 15, 16],
        [20, 21, 22, PAD, PAD, PAD, PAD],
    ]
    assert batch["labels"].tolist() == [
        [-100, -100, 12, 13, 14, 15, 16],
        [-100, 21, 22, -100, -100, -100, -100],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]


def test_branch_exact_tensors() -> None:
    planner = FixedPlanner("branch", {10: [TokenRun(2, (11, 10)), TokenRun(4, (12,))]})
    batch = collator(planner)([feature(10, 2, 4), feature(20, 1, 2)])
    assert batch["input_ids"].tolist() == [
        [10, 11, 12, 13, 14, 15, 11, 10, 12, PAD],
        [20, 21, 22, *[PAD] * 7],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 0],
        [0, 1, 2, *[0] * 7],
    ]
    # Clean places predict the next token; a noise token for place p predicts place p + 1.
    assert batch["shift_labels"].tolist() == [
        [-100, 12, 13, 14, 15, -100, 13, 14, 15, -100],
        [21, 22, *[-100] * 8],
    ]
    assert batch["labels"][:, 1:].tolist() == batch["shift_labels"][:, :-1].tolist()
    mask = batch["attention_mask"]
    assert mask.shape == (2, 1, 10, 10)
    assert mask.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in mask[0, 0]] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5],
        [0, 1, 6], [0, 1, 6, 7],
        [0, 1, 2, 3, 8],
        [9],
    ]  # fmt: skip
    assert [row.nonzero().flatten().tolist() for row in mask[1, 0]] == [
        [0], [0, 1], [0, 1, 2], [3], [4], [5], [6], [7], [8], [9],
    ]  # fmt: skip


def test_packed_documents_do_not_see_each_other_and_keep_their_noise() -> None:
    runs = {10: [TokenRun(2, (11,))], 20: [TokenRun(1, (20, 20))]}
    features = pack_documents([feature(10, 2, 3), feature(20, 1, 3)], row_len=9)
    inline = collator(FixedPlanner("inline", runs))(features)
    assert inline["input_ids"].tolist() == [[10, 11, 11, 13, 14, 20, 20, 20, 23]]
    batch = collator(FixedPlanner("branch", runs))(features)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 20, 21, 22, 23, 11, 20, 20, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 2, 1, 2, 0]]
    sees = [row.nonzero().flatten().tolist() for row in batch["attention_mask"][0, 0]]
    assert sees[5] == [5]
    assert sees[8] == [5, 6, 7, 8]
    assert sees[9] == [0, 1, 9]
    assert sees[10] == [5, 10]
    assert sees[11] == [5, 10, 11]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def random_features() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    features = []
    for length in (30, 17, 23):
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        features.append({"input_ids": ids, "labels": [-100] * 6 + ids[6:]})
    return features


def test_the_loss_is_the_mean_over_clean_and_noise_targets(model: LlamaForCausalLM) -> None:
    batch = collator(NoisePlanner(NoiseSettings(mode="branch"), SPECIAL))(random_features())
    output = model(**batch)
    targets = batch["shift_labels"]
    logits = output.logits.float()  # as transformers computes the loss
    expected = torch.nn.functional.cross_entropy(logits[targets >= 0], targets[targets >= 0])
    assert torch.allclose(output.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["inline", "branch"])
def test_noise_does_not_depend_on_the_batch(mode: Any) -> None:
    planner = NoisePlanner(NoiseSettings(mode=mode), SPECIAL)
    features = random_features()
    together = collator(planner)(features)
    for row, example in enumerate(features):
        alone = collator(planner)([example])["input_ids"][0]
        padded = together["input_ids"][row]
        tokens = alone[:-1] if mode == "branch" else alone
        assert padded[: len(tokens)].tolist() == tokens.tolist()


def test_left_padding_and_rows_without_a_mask() -> None:
    planner = FixedPlanner("inline", {10: [TokenRun(2, (10,))]})
    ids, labels = torch.tensor([[PAD, PAD, 10, 11, 12, 13]]), torch.tensor([[-100] * 4 + [12, 13]])

    def left_padded(_: Any) -> Batch:
        return {"input_ids": ids, "labels": labels, "attention_mask": (ids != PAD).long()}

    def without_mask(_: Any) -> Batch:
        return {"input_ids": ids[:, 2:], "labels": labels[:, 2:]}

    noised = DraftCollator(left_padded, planner, PAD)([])
    assert noised["input_ids"].tolist() == [[PAD, PAD, 10, 11, 10, 13]]
    assert ids[0, 4] == 12  # the inner batch is not changed in place
    noised = DraftCollator(without_mask, planner, PAD)([])
    assert noised["input_ids"].tolist() == [[10, 11, 10, 13]]


def test_plain_fine_tuning_is_the_inner_collator() -> None:
    planner = NoisePlanner(NoiseSettings(mode="branch", clean_share=1.0), SPECIAL)
    features = random_features()
    plain, inner = collator(planner)(features), PaddingCollator(PAD)(features)
    assert plain.keys() == inner.keys()
    assert all(torch.equal(plain[key], inner[key]) for key in inner)


def test_the_callback_counts_epochs_also_after_a_resume() -> None:
    noisy = collator(NoisePlanner(NoiseSettings(), SPECIAL))
    callback = CollatorEpochs(noisy)
    for epoch, expected in ((0, 0), (None, 0), (0.9999999999, 1), (1.0, 1), (1.37, 1), (3.0, 3)):
        state = TrainerState()
        state.epoch = epoch
        callback.on_epoch_begin(None, state, TrainerControl())
        assert noisy.epoch == expected


def test_packing_fills_rows_and_never_cuts_a_document() -> None:
    lengths = [7, 3, 5, 2, 8, 1, 4, 4]
    documents = [feature(10 * i, 1, length - 1) for i, length in enumerate(lengths)]
    rows = pack_documents(documents, row_len=9)
    assert sorted(n for row in rows for n in row["seq_lengths"]) == sorted(lengths)
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) <= 9 for row in rows)
    assert len(rows) == 4  # 34 tokens: best fit leaves 2 places of 36 free
    batch = PaddingCollator(PAD)(rows)
    assert (batch["labels"][batch["position_ids"] == 0] == -100).all()


def test_a_clean_twin_stands_at_the_same_position_and_has_the_same_target() -> None:
    noise = DraftCollator(
        PaddingCollator(PAD), NoisePlanner(NoiseSettings(mode="branch", spacing=3), SPECIAL), PAD
    )
    noise.adds_places = True
    batch = noise([feature(10, 2, 30), feature(50, 4, 9)])
    twins, is_noise = batch["clean_twins"], batch["block_depths"] > 0
    assert is_noise.sum() > 20 and torch.equal(twins >= 0, is_noise)
    for name in ("position_ids", "shift_labels"):
        of_twins = batch[name].gather(1, twins.clamp(min=0))
        assert torch.equal(of_twins[is_noise], batch[name][is_noise]), name
    assert not (is_noise.gather(1, twins.clamp(min=0)) & is_noise).any(), "a twin is clean"


def gapped_tokenizer() -> PreTrainedTokenizerFast:
    """Nothing has the ids 256 to 297."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    raw = Tokenizer(models.BPE(vocab={**vocabulary, "<s>": 298, "</s>": 299}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def test_noise_of_the_vocabulary_is_tokens_with_a_row() -> None:
    tokenizer = gapped_tokenizer()
    assert highest_id(tokenizer) == 299 > len(tokenizer)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(50)])
    settings = NoiseSettings(mode="branch", source="vocabulary")
    ids = [298, *range(40, 240), 299]
    for num_rows, highest in ((None, 349), (320, 319), (300, 255)):
        noisy = DraftCollator.from_tokenizer(tokenizer, settings, num_rows=num_rows)
        drawn = set()
        for noisy.epoch in range(60):
            runs = noisy.plan(ids, [-100, *ids[1:]])
            drawn |= {token for run in runs for token in run.token_ids}
        assert drawn <= set(range(256)) | set(range(300, 350))
        assert max(drawn) == highest


@pytest.mark.parametrize(("persistent", "workers"), [(False, 0), (True, 1)])
def test_every_epoch_draws_anew_in_workers_that_outlive_it(persistent: bool, workers: int) -> None:
    noisy = collator(NoisePlanner(NoiseSettings(mode="inline"), SPECIAL))
    loader: DataLoader[Any] = DataLoader(
        random_features(),  # type: ignore[arg-type]
        batch_size=3,
        collate_fn=noisy,
        num_workers=workers,
        persistent_workers=persistent,
        multiprocessing_context="fork" if workers else None,
    )
    seen = []
    for noisy.epoch in range(4):
        (batch,) = loader
        seen.append(batch["input_ids"].tolist())
    assert len({str(one) for one in seen}) == 4
    noisy.epoch = 0
    assert seen[0] == noisy(random_features())["input_ids"].tolist()
    assert copy.deepcopy(noisy).epoch == pickle.loads(pickle.dumps(noisy)).epoch == 0
