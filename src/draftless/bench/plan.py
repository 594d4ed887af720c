"""What a run will do: its options, its questions, and a method for each of its cases."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from draftless.bench.conversation import Conversation
from draftless.bench.methods import Method, Sampling, our_method, peer_methods, stock_copy
from draftless.bench.questions import Question, balanced
from draftless.bench.rows import Case, method_name
from draftless.bench.streams import make_streams
from draftless.bench.variants import drafted_models, file_digests, left_out, store_labels
from draftless.drafters.registry import check_options
from draftless.errors import ConfigError, InputError
from draftless.model import Draftless
from draftless.provenance import collect_provenance

PLAIN = "none"


@dataclass(frozen=True)
class RunOptions:
    """What is measured, and on what.

    Attributes:
        name: of the model in the rows.
        suite: of the questions, as the user gave it.
        drafters: names of the registry, None is all that the checkpoint supports; plain decoding
            (`none`) is always among the cases.
        variants: drafters with options of their own, one more case each beside `drafters`.
        samplings: one set of cases each.
        max_new_tokens: per turn.
        repeats: of everything; a repetition begins when all questions are done.
        limit: most questions, taken from the categories in turn; None is all.
        seed: of the sampling; question and repetition are mixed in.
        is_raw: prompts as they are, without a chat template or a checkpoint's format.
        has_peers: whether `transformers`' own loops run, too.
        mixes: a stream of requests for each of these mix ratios (0 to 1), one after the other and of
            the same questions; none is a suite. `seed` also gives their order.
    """

    name: str
    suite: str = "tiny"
    drafters: tuple[str, ...] | None = None
    variants: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    samplings: tuple[Sampling, ...] = (Sampling(),)
    max_new_tokens: int = 128
    repeats: int = 1
    limit: int | None = None
    seed: int = 0
    is_raw: bool = False
    has_peers: bool = True
    mixes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("repeats", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}={value} is below {low}")
        for name, options in (*((name, {}) for name in self.drafters or ()), *self.variants):
            check_options(name, options)
        if not self.samplings:
            raise ConfigError("no sampling is given; say at least temperature 0")
        for mix in self.mixes:
            if not 0.0 <= mix <= 1.0:
                raise ConfigError(
                    f"mix={mix} is not between 0 (one category after the other) and 1 (another one "
                    "after every request)"
                )


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        options: as given.
        model: with plain decoding.
        methods: of every case, in order.
        fresh_methods: makes them anew, with drafters that remember nothing yet; each case has its own.
        questions: that fit into the model's context, in order; in streams as often as there are
            mix ratios.
        too_long: ids of those that do not.
        suite_digest: of the text of all questions of the suite.
        left_out: why a drafter, or a peer under a sampling, does not run.
        labels: domains that a method with anchors can route to.
    """

    options: RunOptions
    model: Draftless
    methods: Mapping[Case, Method]
    fresh_methods: Callable[[], Mapping[Case, Method]]
    questions: Sequence[Question]
    too_long: Sequence[str]
    suite_digest: str
    left_out: Mapping[str, str]
    labels: Mapping[str, list[str]]

    def facts(self) -> dict[str, Any]:
        """A line of `sessions.jsonl`."""
        model = self.model.target.model
        return {
            **collect_provenance(),
            "options": _plain(self.options),
            "model": {
                "name": self.options.name,
                "class": type(model).__name__,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "dtype": _dtype_name(self.model),
                "fingerprint": self.model.target.fingerprint(),
                "is_compiled": self.model.target.is_compiled,
                "is_strict": self.model.target.is_strict,
                "device": str(self.model.target.device),
                "num_layers": self.model.target.config.num_hidden_layers,
                "vocab_size": self.model.target.vocab_size,
            },
            "suite_digest": self.suite_digest,
            "num_questions": len(self.questions),
            "too_long": list(self.too_long),
            "left_out": dict(self.left_out),
            "labels": dict(self.labels),
            "file_digests": file_digests(self.options.variants),
        }


def make_plan(model: Draftless, questions: Sequence[Question], options: RunOptions) -> Plan:
    """Build all methods and choose the questions.

    Raises:
        ConfigError: a drafter or one of its options is unknown, the checkpoint was not trained for
            a drafter that is asked for by name, or two variants have one name.
        InputError: no question fits into the model's context.
    """
    plain = model.with_drafter(PLAIN)
    skipped: dict[str, str] = {}
    if options.drafters is None:
        options = replace(options, drafters=plain.drafters)
        skipped = left_out(plain)
    stock = stock_copy(plain.target.model) if options.has_peers else None
    methods, reasons = _methods(plain, stock, options)
    limit = plain.target.max_positions
    fitting: list[Question] = []
    too_long: list[Question] = []
    for question in balanced(questions):
        is_fitting = limit is None or _longest(plain, question, options) <= limit
        (fitting if is_fitting else too_long).append(question)
    if not fitting:
        raise InputError(
            f"none of {len(questions)} questions leaves room for {options.max_new_tokens} new "
            f"tokens a turn in the model's context of {limit}; lower --max-new-tokens"
        )
    chosen = fitting[: options.limit]
    return Plan(
        options=options,
        model=plain,
        methods=methods,
        fresh_methods=lambda: _methods(plain, stock, options)[0],
        questions=make_streams(chosen, options.mixes, options.seed) if options.mixes else chosen,
        too_long=[question.question_id for question in too_long],
        suite_digest=f"{zlib.crc32(repr(list(questions)).encode()):08x}",
        left_out={**skipped, **reasons},
        labels=store_labels(_drafted(plain, options)),
    )


def _drafted(plain: Draftless, options: RunOptions) -> dict[str, Draftless]:
    return drafted_models(plain, (PLAIN, *(options.drafters or ())), options.variants)


def _methods(
    plain: Draftless, stock: PreTrainedModel | None, options: RunOptions
) -> tuple[dict[Case, Method], dict[str, str]]:
    """The methods of all cases, and why a peer under a sampling is none."""
    methods: dict[Case, Method] = {}
    skipped: dict[str, str] = {}
    for sampling in options.samplings:
        found: dict[str, Method] = {}
        if stock is not None:
            found, reasons = peer_methods(plain, stock, sampling, options.max_new_tokens)
            skipped |= {f"{peer}, {sampling.name}": reason for peer, reason in reasons.items()}
        # What a drafter learnt from an answer must not help it with the same question elsewhere.
        for name, one in _drafted(plain, options).items():
            found[name] = our_method(one, sampling, options.max_new_tokens)
        for name, method in found.items():
            methods[Case(options.name, name, sampling.name, _dtype_name(plain))] = method
    return methods, skipped


def _plain(options: RunOptions) -> dict[str, Any]:
    """The options as JSON keeps them."""
    return {
        **asdict(options),
        "drafters": list(options.drafters or ()),
        "variants": [method_name(name, more) for name, more in options.variants],
        "samplings": [one.name for one in options.samplings],
        "mixes": list(options.mixes),
    }


def _longest(model: Draftless, question: Question, options: RunOptions) -> int:
    """Most tokens of a conversation; 0 if its prompt cannot be made, which its rows will tell."""
    try:
        conversation = Conversation(model, question, is_raw=options.is_raw)
        return conversation.longest(options.max_new_tokens)
    except Exception:  # noqa: BLE001 - chat templates are programs and may raise anything
        return 0


def _dtype_name(model: Draftless) -> str:
    dtype: torch.dtype = model.target.model.dtype
    return str(dtype).removeprefix("torch.")
