"""Each metric on answers that are right, wrong and malformed."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from draftless.bench.quality import gsm8k, sql, summaries, translation
from draftless.bench.quality.loss import clean_loss, token_losses
from draftless.bench.quality.records import QualityRecord
from draftless.bench.quality.scoring import METRICS, score_output
from draftless.bench.quality.sql_execution import equal_results, table_of
from draftless.bench.quality.text import fenced_block
from support.bench import bench_model

HEADER = "Write a SQL query.\n\nTable: t(name, year, points)\nQuestion: ?"
GOLD = "SELECT name FROM t WHERE year = 2004 AND points > 10;"


@pytest.mark.parametrize(
    "answer",
    [
        GOLD,
        "select NAME\n from t  where YEAR=2004 and points>10",
        "```sql\nSELECT name FROM t WHERE year = 2004 AND points > 10;\n```",
        "The query:\n```\nSELECT name FROM t WHERE year = 2004 AND points > 10;",
    ],
)
def test_the_same_query_in_other_dress_is_exact(answer: str) -> None:
    assert sql.score(answer, GOLD, HEADER) == {"sql_exact": True, "sql_executes": True}


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT name FROM t WHERE points > 10 AND year = 2004;",
        "SELECT name FROM t WHERE year = '2004' AND 10 < points;",
        'SELECT "name" FROM "t" WHERE points > 10 AND year == 2004',
        "SELECT a.name FROM t AS a WHERE a.points > 10 AND a.year = 2004",
    ],
)
def test_another_query_with_the_same_results_executes(answer: str) -> None:
    assert sql.score(answer, GOLD, HEADER) == {"sql_exact": False, "sql_executes": True}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        ";",
        "-- SELECT name FROM t",
        "SELECT name FROM t",
        "SELECT year FROM t WHERE year = 2004 AND points > 10;",
        "SELECT name, year FROM t WHERE year = 2004 AND points > 10;",
        "SELECT name FROM t WHERE year = 2005 AND points > 10;",
        "SELECT name FROM t WHERE year = 2004 AND points >= 10;",
        "SELECT name FROM t WHERE points = 2004 AND points > 10;",
        "SELECT name FROM t WHERE year = 2004 OR points > 10;",
        "SELECT COUNT(name) FROM t WHERE year = 2004 AND points > 10;",
        "SELECT DISTINCT name FROM t WHERE year = 2004 AND points > 10 LIMIT 1;",
        "SELECT name FROM u WHERE year = 2004 AND points > 10;",
        "SELECT nam FROM t WHERE year = 2004 AND points > 10;",
        "SELECT name FROM t WHERE year = 2004 AND points > 10; SELECT 1",
        "SELECT name FROM t WHERE year = 'x",
        "I do not know.",
        "SELECT \0",
        "DROP TABLE t",
        "DELETE FROM t; " + GOLD,
        "ATTACH 'file.db' AS other",
        "PRAGMA table_info(t)",
        "UPDATE t SET year = year WHERE year = 2004 AND points > 10 RETURNING name",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
        "SELECT group_concat(hex(zeroblob(1000000000))) FROM t",
    ],
)
def test_wrong_and_malformed_queries_fail(answer: str) -> None:
    assert sql.score(answer, GOLD, HEADER) == {"sql_exact": False, "sql_executes": False}


def test_strings_keep_their_case_and_quotes() -> None:
    gold = "SELECT year FROM t WHERE name = 'O''Neal Jr';"
    for wrong in ("'o''neal jr'", "'O''Neal  Jr'", "'O''Neal'"):
        answer = f"SELECT year FROM t WHERE name = {wrong};"
        assert sql.score(answer, gold, HEADER) == {"sql_exact": False, "sql_executes": False}
    assert sql.score(gold, gold, HEADER) == {"sql_exact": True, "sql_executes": True}


@pytest.mark.parametrize("function", ["COUNT", "MIN", "MAX", "SUM", "AVG"])
def test_aggregates_are_told_apart(function: str) -> None:
    gold = f"SELECT {function}(points) FROM t WHERE name = 'Ann';"
    assert equal_results(gold.lower().replace("ann", "Ann"), gold, HEADER)
    for other in {"COUNT", "MIN", "MAX", "SUM", "AVG"} - {function}:
        assert equal_results(gold.replace(function, other), gold, HEADER) is False
    assert equal_results(gold.replace("points", "year"), gold, HEADER) is False
    assert equal_results(gold.replace("Ann", "Anne"), gold, HEADER) is False


def test_order_counts_only_where_it_is_asked_for() -> None:
    one, other = ("SELECT name, points FROM t ORDER BY points", "SELECT name, points FROM t")
    assert equal_results(one, other, HEADER)
    assert equal_results(other, one, HEADER) is False


@pytest.mark.parametrize(
    ("prompt", "gold"),
    [
        ("How many?", GOLD),
        ("Table: t(name, name)", "SELECT name FROM t"),
        ("Table: t(a b, c)", "SELECT c FROM t"),
        ("Table: t(name)", GOLD),
        (HEADER, "SELECT name FROM t WHERE year = 1 AND year = 2"),
    ],
)
def test_execution_is_not_judged_where_it_means_nothing(prompt: str, gold: str) -> None:
    assert sql.score(gold, gold, prompt) == {"sql_exact": True, "sql_executes": None}


def test_the_table_is_read_from_the_prompt() -> None:
    table = table_of(HEADER)
    assert table is not None
    assert (table.name, table.columns) == ("t", ("name", "year", "points"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### $1,234.50", "1234.5"),
        ("####-3", "-3"),
        ("#### 7 apples\n#### 8", "7"),
        ("#### 18\n\nQuestion: 5 more?", "18"),
        ("#### seven", None),
        ("####\n7", None),
        ("the answer is 7", None),
        ("", None),
    ],
)
def test_the_marked_answer(text: str, value: str | None) -> None:
    assert gsm8k.marked_answer(text) == (Decimal(value) if value else None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10-5", "5"),
        ("it is -5.", "-5"),
        ("3.50.", "3.5"),
        ("2 or .5", ".5"),
        ("$ 40", "40"),
        ("none", None),
    ],
)
def test_the_last_number(text: str, value: str | None) -> None:
    assert gsm8k.last_number(text) == (Decimal(value) if value else None)


@pytest.mark.parametrize(
    ("output", "right", "marked"),
    [
        ("a\n#### 18", True, True),
        ("#### 18.00", True, True),
        ("The answer is 18.", True, False),
        ("#### 17 or 18", False, False),
        ("18 at first, then 19", False, False),
        ("#### ", False, False),
        ("", False, False),
    ],
)
def test_gsm8k(output: str, right: bool, marked: bool) -> None:
    assert gsm8k.score(output, "x\n#### 18") == {"gsm8k": right, "gsm8k_marked": marked}


def test_gsm8k_needs_a_reference_with_an_answer() -> None:
    assert gsm8k.score("#### 1", "no answer") is None


HYPOTHESES = ["the cat sat on the mat", "a dog", "", "completely different words here"]
REFERENCES = ["the cat sat on a mat", "a dog barks", "nothing", "we went home"]


def test_summed_counts_give_sacrebleus_own_corpus_scores() -> None:
    """Our way rests on methods that sacrebleu does not promise to keep."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    counts = [translation.counts(h, r) for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        totals = np.array([count[name] for count in counts]).sum(axis=0)
        expected = metric.corpus_score(HYPOTHESES, [REFERENCES]).score
        score = METRICS[name].score(np.stack([totals, 2 * totals]))
        assert score.shape == (2,)
        assert float(score[0]) == pytest.approx(expected)
        assert 0 < expected < 100


def test_translations_right_wrong_and_empty() -> None:
    def scores(output: str) -> tuple[float, float]:
        counts = translation.counts(output, "the cat sat on the mat")
        return tuple(float(METRICS[m].score(np.array(counts[m]))) for m in ("bleu", "chrf"))  # type: ignore[return-value]

    right, near, wrong, empty = map(
        scores, ("the cat sat on the mat", "the cat sat on a mat", "xyz", "")
    )
    assert right == pytest.approx((100, 100))
    for one in range(2):
        assert right[one] > near[one] > wrong[one] >= empty[one] == 0


def test_signatures_tell_the_tokenizer() -> None:
    signatures = translation.signatures()
    assert "tok:13a" in signatures["bleu"]
    assert "nc:6" in signatures["chrf"]


def test_summaries_right_wrong_and_empty() -> None:
    reference = "Dogs were running in parks"
    right, near, wrong, empty = (
        summaries.score(output, reference)
        for output in ("dogs were running in parks", "a dog runs in the park", "xyz", "")
    )
    assert right == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert 0 < near["rouge2"] + near["rougeL"] <= 2 * near["rouge1"] < 2
    assert set(wrong.values()) == set(empty.values()) == {0.0}


def test_rouge_by_hand() -> None:
    """4 of 5 and 4 of 4 words, in order; 3 of 4 and 3 of 3 pairs, of which 2 agree."""
    scores = summaries.score("one two four five", "one two three four five")
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(2 * 0.8 / 1.8)
    assert scores["rouge2"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_fences() -> None:
    assert fenced_block("a\n```python\nx\ny\n```\n```\nz\n```") == "x\ny"
    assert fenced_block("```\nopen") == "open"
    assert fenced_block("none") is None


def test_the_domain_decides_what_is_measured() -> None:
    def measured(domain: str, response: str, prompt: str = "?") -> set[str]:
        return set(score_output(QualityRecord("1", domain, prompt, response), "x"))

    assert measured("sql", GOLD, HEADER) == {"sql_exact", "sql_executes"}
    assert measured("sql", GOLD) == {"sql_exact"}
    assert measured("translation", "a") == {"bleu", "chrf"}
    assert measured("summarization", "a") == {"rouge1", "rouge2", "rougeL"}
    assert measured("math", "#### 1") == {"gsm8k", "gsm8k_marked"}
    assert measured("math", "1") == set()
    assert measured("story", "a") == set()


def test_code_is_run_only_on_request() -> None:
    test = "def check(candidate):\n    assert candidate() == 1\n"
    record = QualityRecord("1", "humaneval", "def one():\n", "    return 1", test, "one")
    assert score_output(record, "    return 1") == {}
    assert score_output(record, "    return 1", runs_code=True) == {"pass_at_1": [1.0, 1.0]}
    assert score_output(record, "    return 2", runs_code=True) == {"pass_at_1": [0.0, 1.0]}


def test_clean_loss_is_the_plain_cross_entropy_of_the_response() -> None:
    target = bench_model().target
    ids = [0, 40, 41, 42, 43, 44]
    with torch.inference_mode():
        logits = target.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert target.input_only_ids, "the model has ids that it never says"
        logits[:, list(target.input_only_ids)] = -torch.inf
    expected = F.cross_entropy(logits[2:-1], torch.tensor(ids[3:]), reduction="sum")
    assert clean_loss(target, ids, 3) == (pytest.approx(float(expected), rel=1e-5), 3)
    _, greedy = token_losses(target, [*ids[:3], int(logits[2].argmax())], 3)
    assert greedy.tolist() == [True]


def test_clean_loss_agrees_with_the_engines_own_forward() -> None:
    """The engine packs its queries and masks them itself; both must see the same model."""
    model = bench_model()
    output = model.generate([0, 40, 41, 42], max_new_tokens=12)
    _, greedy = token_losses(model.target, [0, 40, 41, 42, *output.token_ids], 4)
    assert greedy.all()


def test_clean_loss_stops_where_the_context_ends() -> None:
    target = bench_model().target
    assert target.max_positions == 512
    ids = [0, *[40, 41, 42] * 200]
    loss, count = clean_loss(target, ids, 500)
    assert (count, math.isfinite(loss)) == (13, True), "the last one is only predicted"
    assert clean_loss(target, ids, 513) == (0.0, 0)
