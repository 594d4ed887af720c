"""`Draftless`: a model, a tokenizer and a drafter behind `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from draftless.drafters.registry import (
    DRAFTERS,
    NEED_CHECKPOINT,
    check_options,
    default_options,
    make_drafter,
)
from draftless.engine.generation_config import params_from_generation_config
from draftless.engine.loop import Request, decode, make_request
from draftless.engine.target import Attention, TargetModel
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.hub import hub_folder
from draftless.manifest import Manifest, read_manifest
from draftless.params import SamplingParams
from draftless.types import Chunk, Drafter, Output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | torch.Tensor
Params: TypeAlias = "SamplingParams | GenerationConfig"


def embedded_model_path() -> Path:
    """Folder of the small model that ships with the package."""
    return Path(__file__).parent / "assets" / "tiny"


class Draftless:
    """A causal language model that drafts for itself.

    The output does not depend on the drafter: for a given seed it is token for token what
    `drafter="none"` gives (in half precision up to near-ties, DESIGN 1).
    """

    def __init__(
        self,
        target: TargetModel,
        tokenizer: PreTrainedTokenizerBase | None,
        drafter: Drafter,
        manifest: Manifest | None = None,
        folder: Path | None = None,
    ) -> None:
        """Put the parts together; `folder` is where the files lie that the manifest names."""
        self.target = target
        self.tokenizer = tokenizer
        self.drafter = drafter
        self.manifest = manifest
        self.folder = folder

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - keywords, each of its own kind
        cls,
        path_or_model: str | Path | PreTrainedModel | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        drafter: str | Drafter | None = None,
        drafter_options: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attention: Attention = "draftless",
        input_only_ids: Sequence[int] = (),
        compile: bool = False,
        strict: bool = False,
        int8: bool = False,
    ) -> Draftless:
        """Load a model.

        Args:
            path_or_model: checkpoint folder, hub id, or a loaded model (which keeps its dtype and
                place and gets our attention); None is the embedded model.
            tokenizer: None loads the checkpoint's; a loaded model may go without one (ids only).
            drafter: a name of the registry or your own; None is the checkpoint's choice, else `auto`.
            drafter_options: options of a named drafter; the rest comes from the checkpoint.
            dtype: `bfloat16`, `float32`, ...; None keeps the checkpoint's.
            device: where to load; None is the CPU.
            attention: `draftless`, or the stock `sdpa` or `eager`.
            compile: compile the forward pass: some time now (seconds when it was compiled before), faster
                passes later. Where that is impossible a warning says why.
            strict: the same ids for every drafter in half precision, too; needs `compile`, costs time.
            int8: round the linear layers' weights to what int8 holds; that model's own output is then the
                target. Compiled on a CPU with AVX512-BF16, they take half the memory.
            input_only_ids: never emitted, beside the adaptive tokens that a checkpoint's `draftless.json`
                names; for a loaded model, which comes without one.

        Raises:
            ArtifactError: the checkpoint cannot be read.
            CapabilityError: exact drafting cannot work with this model.
            ConfigError: an option is unknown or cannot be honoured.
        """
        if isinstance(drafter, str):
            check_options(drafter, drafter_options or {})
        manifest, folder = None, None
        how: dict[str, Any] = {"attention": attention, "compile": compile, "strict": strict}
        if isinstance(path_or_model, PreTrainedModel):
            if dtype is not None or device is not None or int8:
                raise ConfigError(
                    "a loaded model has its dtype, device and weights; leave them out"
                )
            target = TargetModel(path_or_model, input_only_ids=input_only_ids, **how)
        else:
            path = embedded_model_path() if path_or_model is None else path_or_model
            folder, manifest = _ours_of(path)
            input_only_ids = (*_adaptive_ids(manifest), *input_only_ids)
            target = TargetModel.from_pretrained(
                path, dtype=dtype, device=device, input_only_ids=input_only_ids, int8=int8, **how
            )
            tokenizer = tokenizer or _load_tokenizer(path)
        model = cls(target, tokenizer, make_drafter("none"), manifest, folder)
        chosen = drafter or (manifest.default_drafter if manifest else None) or "auto"
        return model.with_drafter(chosen, drafter_options)

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names of the drafters that can be used: some need something in the checkpoint."""
        there = self.manifest.methods if self.manifest else {}
        return tuple(name for name in DRAFTERS if name not in NEED_CHECKPOINT or name in there)

    def with_drafter(
        self, drafter: str | Drafter, options: Mapping[str, Any] | None = None
    ) -> Draftless:
        """The same model with another drafter; the weights are shared."""
        if isinstance(drafter, str):
            entry = _ENTRY.get(drafter, drafter)
            from_checkpoint = self.manifest.methods.get(entry, {}) if self.manifest else {}
            trained = _decoding_options(drafter, from_checkpoint, self.folder)
            given = {**trained, **(options or {})}
            defaults = default_options(drafter, self.target, given)
            drafter = make_drafter(drafter, {**defaults, **given})
            for skip_set in getattr(drafter, "skip_sets", ()):
                self.target.compile_view(
                    skip_set
                )  # so that draft passes are no slower than the target's
        elif options:
            raise ConfigError("drafter_options go with a drafter's name, not with an object")
        return Draftless(self.target, self.tokenizer, drafter, self.manifest, self.folder)

    @overload
    def generate(self, prompts: str, params: Params | None = None, **overrides: Any) -> Output: ...

    @overload
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Any = None, **overrides: Any
    ) -> Any: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        streamer: BaseStreamer | None = None,
        **overrides: Any,
    ) -> Output | list[Output]:
        """Generate for one prompt, or for several in one batch.

        Args:
            prompts: text, token ids or chat messages; or a list of such.
            params: `SamplingParams` or a `GenerationConfig` (whose unset fields are the model's own, as in
                `transformers`); or one per prompt.
            streamer: a `transformers` streamer; one prompt only.
            **overrides: fields of `SamplingParams`, such as `temperature=0.7`.

        Returns:
            One `Output`, or a list of them in the order of a list of prompts.

        Raises:
            InputError: a prompt is empty, too long or has ids outside the vocabulary.
            ConfigError: an option cannot be honoured.
        """
        batch = _as_batch(prompts)
        requests = self._requests([prompts] if batch is None else batch, params, overrides)
        if streamer is not None:
            if len(requests) != 1:
                raise ConfigError(f"a streamer takes one prompt, not {len(requests)}")
            streamer.put(torch.tensor([requests[0].row.token_ids]))
        reasons: dict[int, Any] = {}
        for request, record in decode(self.target, self.drafter, requests):
            reasons[request.row.request_id] = record.verdict.finish_reason
            if streamer is not None:
                for token_id in record.verdict.token_ids:
                    streamer.put(torch.tensor([token_id]))
        if streamer is not None:
            streamer.end()
        outputs = [_output(request, reasons[request.row.request_id]) for request in requests]
        return outputs[0] if batch is None else outputs

    def stream(
        self, prompt: Prompt, params: Params | None = None, **overrides: Any
    ) -> Iterator[Chunk]:
        """Generate for one prompt; yields a `Chunk` per step, the last one with the `Output`.

        Arguments and errors as `generate`.
        """
        if _as_batch(prompt) is not None:
            raise InputError("stream takes one prompt; use generate for a list")
        (request,) = self._requests([prompt], params, overrides)
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[Chunk]:
        for _, record in decode(self.target, self.drafter, [request]):
            reason = record.verdict.finish_reason
            yield Chunk(
                text=request.stops.take_text(is_last=reason is not None),
                token_ids=record.verdict.token_ids,
                num_accepted_tokens=record.verdict.num_accepted_tokens,
                sources=record.sources,
                num_draft_tokens=record.tree.num_draft_tokens,
                num_nodes=record.tree.num_nodes,
                output=_output(request, reason) if reason else None,
            )

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of one prompt, in the format that the checkpoint was trained with."""
        if isinstance(prompt, torch.Tensor):
            prompt = prompt.flatten().tolist()
        if not isinstance(prompt, Sequence):
            raise InputError(f"a prompt is text, token ids or chat messages, not {prompt!r}")
        if not isinstance(prompt, str) and not any(isinstance(item, Mapping) for item in prompt):
            strange = [item for item in prompt if not isinstance(item, Integral)]
            if strange:
                raise InputError(f"the prompt holds {strange[0]!r}, which is no token id")
            return [int(i) for i in prompt]  # type: ignore[arg-type]
        if self.tokenizer is None:
            raise ConfigError("text needs a tokenizer; pass tokenizer= or token ids")
        if self.manifest is not None and self.manifest.prompt_format is not None:
            return self.manifest.prompt_format.encode_prompt(self.tokenizer, prompt)  # type: ignore[arg-type]
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt).input_ids)
        if not self.tokenizer.chat_template:
            raise InputError("this tokenizer has no chat template; give text instead of messages")
        return list(
            self.tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_dict=False
            )
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        trained = self.manifest.prompt_format if self.manifest else None
        is_plain = trained is not None and trained.kind == "plain"
        return not is_plain and bool(getattr(self.tokenizer, "chat_template", None))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of chat messages in the model's template."""
        try:
            return self.encode(messages)
        except Exception as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """EOS ids of the model's generation config, else of its tokenizer."""
        eos = self.target.model.generation_config.eos_token_id
        if eos is None and self.tokenizer is not None:
            eos = self.tokenizer.eos_token_id
        if eos is None:
            return ()
        return (eos,) if isinstance(eos, int) else tuple(eos)

    def _resolve(
        self, params: Params | None, prompt_len: int, overrides: Mapping[str, Any]
    ) -> SamplingParams:
        known = SamplingParams.__dataclass_fields__
        unknown = [name for name in overrides if name not in known]
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")
        if isinstance(params, GenerationConfig):
            of_model = self.target.model.generation_config
            return params_from_generation_config(params, prompt_len, of_model, **overrides)
        if not isinstance(params, SamplingParams | None):
            raise ConfigError(f"params are SamplingParams or a GenerationConfig, not {params!r}")
        return replace(params or SamplingParams(), **overrides)

    def _requests(
        self,
        prompts: Sequence[Any],
        params: Params | Sequence[Params] | None,
        overrides: Mapping[str, Any],
    ) -> list[Request]:
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts but {len(each)} params; give one or as many")
        requests = []
        for index, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            ids = self.encode(prompt)
            requests.append(
                make_request(
                    self.target,
                    index,
                    ids,
                    self._resolve(one, len(ids), overrides),
                    self.tokenizer,
                    self.eos_token_ids,
                )
            )
        return requests


def _as_batch(prompts: Any) -> list[Any] | None:
    """The prompts of a batch, or None if this is one prompt."""
    if isinstance(prompts, str):
        return None
    if isinstance(prompts, torch.Tensor):
        return None if prompts.dim() < 2 else list(prompts)
    if not isinstance(prompts, Sequence):
        raise InputError(
            f"a prompt is text, token ids or chat messages (or a list of such), not {type(prompts).__name__}"
        )
    items = list(prompts)
    if not items or isinstance(items[0], Number | Mapping):
        return None
    return items


def _output(request: Request, reason: Any) -> Output:
    row = request.row
    assert row.params.seed is not None
    request.stops.take_text(is_last=True, at_once=True)
    return Output(
        token_ids=row.token_ids[row.prompt_len :],
        text=request.stops.text,
        finish_reason=reason,
        seed=row.params.seed,
        stats=request.stats,
    )


_ENTRY = {"auto": "sdsat"}  # the method whose entry tells a drafter that is none itself
_FROM_MANIFEST = {
    "auto": {"adaptive_ids": "adaptive_ids"},
    "recycling": {"template": "template", "budget": "budget"},
    "tr-jacobi": {
        "noise_source": "noise_source",
        "template": "template",
        "budget": "budget",
    },
    "sdsat": {"adaptive_ids": "adaptive_ids", "block_length": "k"},
    "layer-skip": {name: name for name in ("skip_set", "threshold", "depth", "siblings")},
    "knn-ssd": {"store": "store"},
}
"""Per method, what its entry in `draftless.json` says that is an option of its drafter."""


def _decoding_options(
    drafter: str, method: Mapping[str, Any], folder: Path | None
) -> dict[str, Any]:
    """Those parameters of a checkpoint's method that its drafter takes; files lie in its folder."""
    names = _FROM_MANIFEST.get(drafter, {})
    options = {option: method[name] for name, option in names.items() if name in method}
    if "store" in options and folder is not None:
        options["store"] = folder / options["store"]
    return options


def _ours_of(path: str | Path) -> tuple[Path | None, Manifest | None]:
    """The folder of a checkpoint, local or from the hub, and its `draftless.json`."""
    folder = Path(path) if Path(path).is_dir() else hub_folder(str(path))
    return folder, read_manifest(folder) if folder else None


def _adaptive_ids(manifest: Manifest | None) -> tuple[int, ...]:
    """The ids of a checkpoint that are input only.

    Raises:
        ArtifactError: its `draftless.json` names something else than ids.
    """
    ids = manifest.methods.get("sdsat", {}).get("adaptive_ids", ()) if manifest else ()
    if not isinstance(ids, list | tuple) or not all(type(one) is int for one in ids):
        raise ArtifactError(f"adaptive_ids of sdsat in draftless.json is no list of ids: {ids!r}")
    return tuple(ids)


def _load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise ArtifactError(f"cannot load a tokenizer from {str(path)!r}: {error}") from error
    return tokenizer
