"""The target's own responses: what is written, in which order, and how a killed run goes on."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draftless import Draftless, cli, regenerate
from draftless.dialogue import check_prompt
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.loops import LOOP_LIMIT, looping_tokens
from draftless.prompts import PromptFormat
from draftless.regenerate import RegenerateOptions, Regeneration
from draftless.training.data import encode_records, read_records
from support.bench import fresh_model, save_bench_model
from support.small_model import training_model

WORDS = ["the", "cat", "sat", "on", "a", "mat", "äöü", "猫", "log", "print"]
RECORDS = [
    {"id": f"r{n}", "prompt": " ".join(WORDS[(n * 3 + k) % 10] for k in range(1 + n % 5)) + str(n)}
    for n in range(14)
]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip
SAMPLED = RegenerateOptions(max_new_tokens=12, temperature=1.0, seed=5, batch_size=3)


@pytest.fixture(scope="module")
def model() -> Draftless:
    return fresh_model()


@pytest.fixture(scope="module")
def chat_model() -> Draftless:
    model = fresh_model()
    assert model.tokenizer is not None
    model.tokenizer.chat_template = TEMPLATE
    model.target.model.generation_config.eos_token_id = list(range(1, 60))  # responses end soon
    return model


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(
    model: Draftless,
    file: Path,
    options: RegenerateOptions = SAMPLED,
    records: Sequence[dict[str, Any]] = RECORDS,
    **more: Any,
) -> Regeneration:
    run = Regeneration(model, records, file, options, **more)
    pending = run.num_pending
    assert sum(run.batches()) >= pending  # the rest of a window is done again
    return run


def test_lines_are_what_generate_gives_in_the_order_of_the_records(
    model: Draftless, tmp_path: Path
) -> None:
    written(model, tmp_path / "o.jsonl")
    lines = lines_of(tmp_path / "o.jsonl")
    assert [line["index"] for line in lines] == list(range(len(RECORDS)))
    for line, record in zip(lines, RECORDS, strict=True):
        alone = model.generate(
            record["prompt"], max_new_tokens=12, temperature=1.0, seed=line["seed"]
        )
        assert line == {
            "index": line["index"],
            **record,
            "response": alone.text,
            "finish_reason": alone.finish_reason,
            "seed": line["seed"],
        }
    assert len({line["seed"] for line in lines}) == len(RECORDS)
    assert all(0 <= line["seed"] < 2**63 for line in lines)


def test_neither_order_nor_batch_changes_a_response(model: Draftless, tmp_path: Path) -> None:
    expected = None
    shuffled = random.Random(1).sample(RECORDS, len(RECORDS))
    for number, (records, size) in enumerate([(RECORDS, 3), (RECORDS, 1), (shuffled, 32)]):
        file = tmp_path / f"{number}.jsonl"
        options = RegenerateOptions(12, 1.0, seed=5, batch_size=size)
        written(model, file, options, records)
        found = {line["id"]: (line["response"], line["seed"]) for line in lines_of(file)}
        expected = expected or found
        assert found == expected
    other = tmp_path / "other.jsonl"
    written(model, other, RegenerateOptions(12, 1.0, seed=6))
    assert all(line["response"] != expected[line["id"]][0] for line in lines_of(other))


def prefixes(data: bytes) -> Iterator[int]:
    """Lengths to which a kill may cut the file: every end of a line, and places inside lines."""
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    inside = [place for place, byte in enumerate(data) if byte >= 0x80]  # half a character
    yield from (0, *ends[::4], ends[-1], 1, ends[4] - 1, ends[4] + 7, inside[len(inside) // 2])


def test_a_killed_run_goes_on_and_writes_the_same_bytes(model: Draftless, tmp_path: Path) -> None:
    file, options = tmp_path / "o.jsonl", RegenerateOptions(4, 1.0, seed=5, batch_size=2)
    whole = written(model, file, options)
    data = file.read_bytes()
    for length in prefixes(data):
        file.write_bytes(data[:length])
        run = written(model, file, options, is_resumed=True)
        assert file.read_bytes() == data, length
        assert {n: run.counts[n] for n in ("written", "unfinished", "loops")} == {
            n: whole.counts[n] for n in ("written", "unfinished", "loops")
        }
    assert written(model, file, options, is_resumed=True).counts["tokens"] == 0


def test_a_run_that_goes_on_makes_the_same_batches(
    model: Draftless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else half precision could decide a near-tie otherwise."""
    batches: list[list[tuple[int, ...]]] = []
    honest = Draftless.generate

    def noted(self: Draftless, prompts: Any, params: Any) -> Any:
        batches.append([tuple(ids) for ids in prompts])
        return honest(self, prompts, params)

    monkeypatch.setattr(Draftless, "generate", noted)
    file, options = tmp_path / "o.jsonl", RegenerateOptions(2, batch_size=2)
    written(model, file, options)
    whole, data = list(batches), file.read_bytes()
    for batch in whole:
        assert [len(ids) for ids in batch] == sorted(len(ids) for ids in batch)
    file.write_bytes(data[: data.index(b'{"index": 10')])  # inside the second window of 8

    batches.clear()
    written(model, file, options, is_resumed=True)
    assert batches == whole[4:]
    assert file.read_bytes() == data


def test_loops_are_left_out_and_counted(tmp_path: Path) -> None:
    """Greedy text of this random model repeats itself for about half of the prompts."""
    model, texts = fresh_model(training_model()), {}
    for drops in (False, True):
        options = RegenerateOptions(30, batch_size=4, drop_loops=drops)
        run = written(model, tmp_path / f"{drops}.jsonl", options)
        texts[drops] = lines_of(tmp_path / f"{drops}.jsonl")
        assert run.counts["written"] + run.counts["loops"] == len(RECORDS)
    loops = set()
    for record in RECORDS:
        ids = model.generate(record["prompt"], max_new_tokens=30).token_ids
        if looping_tokens(ids) > LOOP_LIMIT * len(ids):
            loops.add(record["id"])
    assert 0 < len(loops) < len(RECORDS)
    assert len(texts[False]) == len(RECORDS)
    assert {line["id"] for line in texts[False]} - {line["id"] for line in texts[True]} == loops
    facts = json.loads((tmp_path / "True.provenance.json").read_text())
    assert facts["counts"]["loops"] == len(loops)
    assert facts["is_complete"]
    again = Regeneration(
        model, RECORDS, tmp_path / "True.jsonl", RegenerateOptions(30), is_resumed=True
    )
    last = texts[True][-1]["index"]
    assert again.counts["loops"] == len([one for one in loops if int(one[1:]) <= last])


def test_prompts_without_room_are_left_out_and_counted(model: Draftless, tmp_path: Path) -> None:
    long = {"id": "long", "prompt": "猫" * 600}
    records = [RECORDS[0], long, RECORDS[1]]
    run = written(model, tmp_path / "o.jsonl", records=records)
    assert [line["index"] for line in lines_of(tmp_path / "o.jsonl")] == [0, 2]
    assert run.counts["too_long"] == 1
    assert written(model, tmp_path / "o.jsonl", records=records, is_resumed=True).num_pending == 0
    with pytest.raises(InputError, match="none of 1 prompts"):
        Regeneration(model, [long], tmp_path / "p.jsonl", SAMPLED)


def test_every_turn_of_a_chat_is_answered_anew(chat_model: Draftless, tmp_path: Path) -> None:
    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    old = {"role": "assistant", "content": "not what the model says"}
    system = {"role": "system", "content": "be brief"}
    chats = [[system, user("a"), old, user("b"), old], [user("c")], [user("d"), old]]
    records = [{"messages": messages, "domain": "chat", "other": 1} for messages in chats]
    options = RegenerateOptions(200, 1.0, batch_size=2, seed=3)
    written(chat_model, tmp_path / "o.jsonl", options, records)
    lines = lines_of(tmp_path / "o.jsonl")
    reasons = []
    for line, messages in zip(lines, chats, strict=True):
        assert line["domain"] == "chat"
        assert "other" not in line
        asked = [one for one in messages if one["role"] != "assistant"]
        told = line["messages"]
        assert [one for one in told if one["role"] != "assistant"] == asked
        for place, message in enumerate(told):
            if message["role"] == "assistant":
                alone = chat_model.generate(
                    told[:place], max_new_tokens=200, temperature=1.0, seed=line["seed"]
                )
                assert message["content"] == alone.text
                reasons.append(alone.finish_reason)
        assert line["finish_reason"] == reasons[-1]
    assert reasons == ["stop"] * 4
    data = (tmp_path / "o.jsonl").read_bytes()
    (tmp_path / "o.jsonl").write_bytes(data[:-5])
    written(chat_model, tmp_path / "o.jsonl", options, records, is_resumed=True)
    assert (tmp_path / "o.jsonl").read_bytes() == data
    cut = RegenerateOptions(1, 1.0)
    written(chat_model, tmp_path / "cut.jsonl", cut, records)
    assert [len(line["messages"]) for line in lines_of(tmp_path / "cut.jsonl")] == [3, 2, 2]
    assert lines_of(tmp_path / "cut.jsonl")[0]["finish_reason"] == "length"


def test_training_reads_it_and_sees_no_end_after_a_cut_response(tmp_path: Path) -> None:
    model = fresh_model()
    model.target.model.generation_config.eos_token_id = list(range(1, 30))  # some end, some do not
    written(model, tmp_path / "o.jsonl", RegenerateOptions(8, 1.0, seed=1))
    lines = lines_of(tmp_path / "o.jsonl")
    reasons = [line["finish_reason"] for line in lines]
    assert set(reasons) == {"stop", "length"}
    documents = encode_records(
        read_records(tmp_path / "o.jsonl"), model.tokenizer, PromptFormat(), 10_000
    )
    assert model.tokenizer is not None
    eos = model.tokenizer.eos_token_id
    ends = [document["labels"][-1] == eos for document in documents]
    assert ends == [reason == "stop" for reason in reasons]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": RegenerateOptions(13, 1.0, seed=5)}, "max_new_tokens=12, not 13"),
        ({"options": RegenerateOptions(12, 1.0, seed=6)}, "seed=5, not 6"),
        ({"records": [*RECORDS[1:], RECORDS[0]]}, "other prompts"),
        ({"records": RECORDS[:5]}, "other prompts"),
        ({"is_resumed": False}, "--resume"),
    ],
)
def test_a_file_goes_on_only_as_it_began(
    model: Draftless, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "o.jsonl"
    written(model, file)
    before = file.read_bytes()
    asked = {"options": SAMPLED, "records": RECORDS, "is_resumed": True, **change}
    with pytest.raises(ConfigError, match=message):
        Regeneration(model, output=file, **asked)
    assert file.read_bytes() == before


def test_a_file_may_grow(model: Draftless, tmp_path: Path) -> None:
    """More records, another batch size: the responses that are there stay."""
    written(model, tmp_path / "whole.jsonl")
    written(model, tmp_path / "o.jsonl", records=RECORDS[:9])
    options = RegenerateOptions(12, 1.0, seed=5, batch_size=8)
    written(model, tmp_path / "o.jsonl", options, is_resumed=True)
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_outputs_that_cannot_be_used_are_refused(
    model: Draftless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"o\.jsonl\.gz does not end in \.jsonl"):
        Regeneration(model, RECORDS, tmp_path / "o.jsonl.gz", SAMPLED)
    (tmp_path / "alien.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(ConfigError, match=r"alien\.provenance\.json is missing"):
        Regeneration(model, RECORDS, tmp_path / "alien.jsonl", SAMPLED, is_resumed=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        written(model, tmp_path / "file" / "o.jsonl")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(regenerate, "append_lines", full)
    with pytest.raises(ArtifactError, match=r"o\.jsonl: No space left.*make room"):
        written(model, tmp_path / "o.jsonl")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"response": "x"}, "string 'prompt'"),
        ({"prompt": 3}, "string 'prompt'"),
        ({"messages": []}, "must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be of 'user'"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}, "tool"),
    ],
)  # fmt: skip
def test_records_without_a_prompt_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"here.*{message}"):
        check_prompt(record, "here")


def test_prompts_that_cannot_be_encoded_are_left_out_and_counted(
    model: Draftless, tmp_path: Path
) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    run = written(model, tmp_path / "o.jsonl", records=[RECORDS[0], chat, RECORDS[1]])
    assert [line["index"] for line in lines_of(tmp_path / "o.jsonl")] == [0, 2]
    assert run.counts["refused"] == 1
    assert "record 2: messages need --format chat" in run.refusal
    with pytest.raises(InputError, match="none of 1 prompts can be used; record 1: messages need"):
        Regeneration(model, [chat], tmp_path / "p.jsonl", SAMPLED)


def test_a_turn_that_the_template_refuses_ends_its_record_alone(
    chat_model: Draftless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barred = "{% if messages | length > 2 and messages[2].content == 'no' %}{{ raise_exception('no') }}{% endif %}"  # fmt: skip
    monkeypatch.setattr(chat_model.tokenizer, "chat_template", barred + TEMPLATE)
    old = {"role": "assistant", "content": "old"}
    chats = [
        [{"role": "user", "content": "a"}, old, {"role": "user", "content": second}, old]
        for second in ("no", "yes")
    ]
    options = RegenerateOptions(200, 1.0, batch_size=2, seed=3)
    written(chat_model, tmp_path / "o.jsonl", options, [{"messages": one} for one in chats])
    assert [len(line["messages"]) for line in lines_of(tmp_path / "o.jsonl")] == [2, 4]


def test_prompts_of_a_chat_model_are_chats_unless_asked_otherwise(
    chat_model: Draftless, tmp_path: Path
) -> None:
    assert chat_model.tokenizer is not None
    for kind in ("auto", "chat", "plain"):
        options = RegenerateOptions(12, 1.0, seed=5, batch_size=3, format=kind)
        run = written(chat_model, tmp_path / f"{kind}.jsonl", options)
        lines = lines_of(tmp_path / f"{kind}.jsonl")
        assert run.counts["empty"] == sum(not line["response"].strip() for line in lines)
        for line in lines:
            text = line["prompt"]
            ids = chat_model.tokenizer(text if kind == "plain" else f"<user>{text}<assistant>")
            alone = chat_model.generate(
                ids.input_ids, max_new_tokens=12, temperature=1.0, seed=line["seed"]
            )
            assert line["response"] == alone.text
    with pytest.raises(ConfigError, match="was written with format=plain, not chat"):
        options = RegenerateOptions(12, 1.0, seed=5, format="chat")
        Regeneration(chat_model, RECORDS, tmp_path / "plain.jsonl", options, is_resumed=True)


def test_fields_for_the_template_reach_it_and_stay(
    chat_model: Draftless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        chat_model.tokenizer,
        "chat_template",
        "{{ tools | map(attribute='name') | join }}" + TEMPLATE,
    )
    record = {"prompt": "Rain?", "tools": [{"name": "get"}]}
    written(chat_model, tmp_path / "o.jsonl", SAMPLED, [record])
    (line,) = lines_of(tmp_path / "o.jsonl")
    assert chat_model.tokenizer is not None
    ids = chat_model.tokenizer("get<user>Rain?<assistant>").input_ids
    alone = chat_model.generate(ids, max_new_tokens=12, temperature=1.0, seed=line["seed"])
    assert (line["response"], line["tools"]) == (alone.text, record["tools"])


def test_the_command(tmp_path: Path) -> None:
    checkpoint = save_bench_model(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    output = tmp_path / "o.jsonl"
    arguments = ["data", "regenerate", "--model", checkpoint, "--prompts", prompts]
    arguments += ["--output", output, "--limit=6", "--max-new-tokens=12", "--temperature=1"]
    arguments += ["--top-k=40", "--top-p=0.9", "--seed=9", "--batch-size=2", "--dtype=float64"]

    def invoke(*more: str) -> Any:
        result = CliRunner().invoke(cli.app, [*map(str, arguments), *more])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    assert "6 of 6 records written" in " ".join(invoke("--drafter=prompt-lookup").stderr.split())
    model = Draftless.from_pretrained(checkpoint, drafter="none", dtype="float64")
    for line in lines_of(output):
        told = {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": line["seed"]}
        alone = model.generate(line["prompt"], max_new_tokens=12, **told)
        assert line["response"] == alone.text
    before = output.read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        invoke()
    output.write_bytes(before[:-30])
    invoke("--resume")
    assert output.read_bytes() == before
    sessions = json.loads((tmp_path / "o.provenance.json").read_text())["sessions"]
    assert len(sessions) == 2
    with pytest.raises(ConfigError, match="--threads 0"):
        invoke("--threads=0", "--output", str(tmp_path / "new.jsonl"))
    with pytest.raises(ConfigError, match="--batch-size 0"):
        invoke("--batch-size=0", "--output", str(tmp_path / "new.jsonl"))
