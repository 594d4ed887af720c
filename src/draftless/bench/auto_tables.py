"""`auto` against what it has to beat: the best single drafter, and the best fixed width, of each domain.

The best rival of a domain, found on the same questions that it is then compared on, is flattered: of
several that are equally fast it is the luckiest. So a second comparison takes for each question the rival
that was best on the domain's other questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from draftless.bench import averages
from draftless.bench.answers import times
from draftless.bench.averages import Pair, is_looping
from draftless.bench.rows import PLAIN_METHODS, QuestionKey, Row, parse_method
from draftless.bench.statistics import Interval
from draftless.bench.summary import CaseSummary
from draftless.bench.tables import UNKNOWN, Table, number

AUTO = "auto"
_PEERS = "transformers"
_OWN_BEST, _BEST_ON_OTHERS = "each domain's best", "each domain's best on its other questions"

Answers = Mapping[QuestionKey, Row]


def best_single_table(cases: Sequence[CaseSummary], rows: Sequence[Row]) -> Table:
    """`auto` over the best of our other drafters, domain by domain; no lines without `auto`.

    Args:
        cases: of one group.
        rows: of the run.
    """
    singles = [
        name
        for name in (case.case.method for case in cases)
        if not name.startswith(_PEERS)
        and name not in PLAIN_METHODS
        and parse_method(name)[0] != AUTO
    ]
    return _against(cases, rows, singles, "best single drafter")


def width_sweep_table(cases: Sequence[CaseSummary], rows: Sequence[Row], option: str) -> Table:
    """`auto` over the best of its variants with a fixed value of `option`, domain by domain."""
    fixed = [
        case.case.method
        for case in cases
        if parse_method(case.case.method)[0] == AUTO and option in parse_method(case.case.method)[1]
    ]
    return _against(cases, rows, fixed, f"best fixed {option}")


def _against(
    cases: Sequence[CaseSummary], rows: Sequence[Row], rivals: Sequence[str], heading: str
) -> Table:
    headings: tuple[str, ...] = (
        "domain",
        heading,
        "tokens/s",
        "auto",
        "nodes",
        "auto over it [95 %]",
    )
    answers = {case.case.method: _answers(rows, case) for case in cases}
    plain = next((case.plain for case in cases if case.plain), None)
    if plain:
        headings += ("auto over plain [95 %]",)
    rivals = _with_answers(answers, rivals)
    if not answers.get(AUTO) or not rivals:
        return Table(headings, (), num_names=2)
    needed = [answers[name] for name in (*rivals, *((plain,) if plain else ()))]
    shared = [key for key in answers[AUTO] if all(key in own for own in needed)]
    domains = sorted({answers[AUTO][key].category for key in shared})
    lines, pairs, fair = [], [], []
    for domain in domains:
        keys = [key for key in shared if answers[AUTO][key].category == domain]
        best = _fastest(answers, rivals, keys)
        lines.append(_line(domain, best, answers, keys, plain))
        pairs += _pairs(answers, best, keys)
        for question_id in sorted({key[0] for key in keys}):
            own = [key for key in keys if key[0] == question_id]
            others = [key for key in keys if key[0] != question_id] or own
            fair += _pairs(answers, _fastest(answers, rivals, others), own)
    mean = _line("mean over domains", UNKNOWN, answers, shared, plain)
    for name, found in ((_OWN_BEST, pairs), (_BEST_ON_OTHERS, fair)):
        over = _told(averages.speed_up(found))
        lines.append((mean[0], name, UNKNOWN, *mean[3:5], over, *mean[6:]))
    best = _fastest(answers, rivals, shared)
    lines.append(_line("mean over domains", best, answers, shared, plain))
    return Table(headings, tuple(lines), num_names=2)


def _answers(rows: Sequence[Row], case: CaseSummary) -> Answers:
    """Answers that count, by question."""
    return {
        row.question: row
        for row in averages.with_merged_categories(rows)
        if row.case == case.case and row.error is None and not is_looping(row)
    }


def _with_answers(answers: Mapping[str, Answers], rivals: Sequence[str]) -> list[str]:
    """Rivals that failed on most questions would leave little to compare."""
    most = max((len(answers[name]) for name in rivals), default=0)
    return [name for name in rivals if most and 2 * len(answers[name]) >= most]


def _fastest(
    answers: Mapping[str, Answers], rivals: Sequence[str], keys: Sequence[QuestionKey]
) -> str:
    """The rival with the most tokens per second, in the mean over domains."""
    return max(rivals, key=lambda name: _speed(answers[name], keys) or 0.0)


def _speed(own: Answers, keys: Iterable[QuestionKey]) -> float | None:
    return averages.tokens_per_second([own[key] for key in keys])


def _pairs(answers: Mapping[str, Answers], rival: str, keys: Iterable[QuestionKey]) -> list[Pair]:
    return [(answers[AUTO][key], answers[rival][key]) for key in keys]


def _line(
    domain: str,
    rival: str,
    answers: Mapping[str, Answers],
    keys: Sequence[QuestionKey],
    plain: str | None,
) -> tuple[str, ...]:
    auto = [answers[AUTO][key] for key in keys]
    nodes = averages.category_mean(auto, averages.num_nodes, lambda row: row.num_steps)
    known = rival in answers
    cells = (
        domain,
        rival,
        number(_speed(answers[rival], keys), 1) if known else UNKNOWN,
        number(averages.tokens_per_second(auto), 1),
        number(nodes, 1),
        _told(averages.speed_up(_pairs(answers, rival, keys))) if known else UNKNOWN,
    )
    if plain is None:
        return cells
    return (*cells, _told(averages.speed_up(_pairs(answers, plain, keys))))


def _told(value: Interval | None) -> str:
    return UNKNOWN if value is None else times(value)
