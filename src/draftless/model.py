"""`Draftless`: a model, a tokenizer and a drafter behind `generate` and `stream`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from draftless.drafters.registry import (
    DRAFTERS,
    NEED_CHECKPOINT,
    check_options,
    default_options,
    make_drafter,
)
from draftless.encoding import PromptEncoder
from draftless.engine.adapters import load_adapter_target
from draftless.engine.capabilities import check_source
from draftless.engine.generation_config import Params, resolve_params
from draftless.engine.load import Compile, Progress
from draftless.engine.loop import Request, decode
from draftless.engine.requests import (
    batches_of,
    chunk_of,
    eos_token_ids,
    make_requests,
    output_of,
    padding_of,
)
from draftless.engine.target import Attention, TargetModel
from draftless.errors import ConfigError, InputError
from draftless.inputs import Prompts, read_call, read_prompts
from draftless.loading import (
    adaptive_ids,
    check_hub_options,
    checkpoint_folder,
    decoding_options,
    load_adapters_tokenizer,
    load_tokenizer,
)
from draftless.manifest import Manifest
from draftless.params import SamplingParams
from draftless.types import Chunk, Drafter, Output
from draftless.wrapped import adapter_base, unwrap

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
    from transformers.generation.streamers import BaseStreamer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | torch.Tensor


def embedded_model_path() -> Path:
    """Folder of the small model that ships with the package."""
    return Path(__file__).parent / "assets" / "tiny"


class Draftless:
    """A causal language model that drafts for itself.

    The output does not depend on the drafter: for a given seed it is token for token what
    `drafter="none"` gives, where `Output.is_reproducible`.

    Threads may share an object. It cannot be pickled: load the model in every process.
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
        path_or_model: str | Path | PreTrainedModel | torch.nn.Module | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        drafter: str | Drafter | None = None,
        drafter_options: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attention: Attention = "draftless",
        input_only_ids: Sequence[int] = (),
        compile: Compile = "auto",
        strict: bool = False,
        int8: bool = False,
        on_progress: Progress | None = None,
        **hub_options: Any,
    ) -> Draftless:
        """Load a model.

        Args:
            path_or_model: checkpoint folder or hub id, also of a peft adapter (merged into its base); GGUF
                file (dequantised); or a loaded model, also in a `PeftModel` or `torch.compile`d, which
                keeps its dtype and place and gets our attention; None is the embedded model.
            tokenizer: None loads the checkpoint's; a loaded model may go without one (ids only).
            drafter: a name of the registry or your own; None is the checkpoint's choice, else `auto`.
            drafter_options: options of a named drafter; the rest comes from the checkpoint.
            dtype: `bfloat16`, `float32`, ...; None keeps the checkpoint's (bfloat16 for a GGUF file).
            device: where to load; None is the CPU.
            attention: `draftless`, or the stock `sdpa` or `eager`.
            compile: `auto`: our batch-invariant kernels where they run (a CPU, bfloat16 and float32), else
                the model's own code. True: Inductor for what they do not know. False: its own code.
            strict: batch-invariant also where our kernels do not run; needs `compile`, costs time.
            int8: round the linear layers' weights to what int8 holds; that model's own output is then the
                target. Compiled on a CPU with AVX512-BF16, they take half the memory.
            input_only_ids: never emitted, beside the adaptive tokens that a checkpoint's `draftless.json`
                names; for a loaded model, which comes without one.
            on_progress: called with a few words whenever something begins that may take seconds.
            **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, `trust_remote_code`, as
                in `transformers`.

        Raises:
            ArtifactError: the checkpoint cannot be read.
            CapabilityError: exact drafting cannot work with this model.
            ConfigError: an option is unknown or cannot be honoured.
        """
        if isinstance(drafter, str):
            check_options(drafter, drafter_options or {})
        how: dict[str, Any] = {"attention": attention, "compile": compile, "strict": strict}
        how |= {"dtype": dtype, "device": device, "int8": int8, "input_only_ids": input_only_ids}
        how |= {"on_progress": on_progress} if on_progress else {}
        path = embedded_model_path() if path_or_model is None else path_or_model
        is_loaded = not isinstance(path, str | Path)
        check_hub_options(hub_options, None if is_loaded else path, _OPTIONS)  # type: ignore[arg-type]
        if is_loaded:
            model = cls(_target_of(path, how), tokenizer, make_drafter("none"))
        else:
            model = cls._load(path, tokenizer, how, hub_options)  # type: ignore[arg-type]
        chosen = drafter or (model.manifest.default_drafter if model.manifest else None) or "auto"
        return model.with_drafter(chosen, drafter_options)

    @classmethod
    def _load(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase | None,
        how: dict[str, Any],
        hub_options: Mapping[str, Any],
    ) -> Draftless:
        """A checkpoint or an adapter, with the drafter `none`."""
        check_source(path)
        folder, manifest = checkpoint_folder(path, hub_options)
        how["input_only_ids"] = (*adaptive_ids(manifest), *how["input_only_ids"])
        base = adapter_base(path, hub_options)
        if base is None:
            target = TargetModel.from_pretrained(path, **how, **hub_options)
            tokenizer = tokenizer or load_tokenizer(path, hub_options)
        else:
            target = load_adapter_target(path, hub_options=hub_options, **how)
            tokenizer = tokenizer or load_adapters_tokenizer(path, base, hub_options)
        return cls(target, tokenizer, make_drafter("none"), manifest, folder)

    def __repr__(self) -> str:
        model = self.target.model
        size = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"Draftless({type(model).__name__}, {size / 1e6:.3g}M parameters, "
            f"{str(model.dtype).removeprefix('torch.')} on {self.device}"
            f"{', compiled' * self.target.is_compiled}, {type(self.drafter).__name__})"
        )

    def __reduce__(self) -> str:
        raise TypeError("Draftless cannot be pickled or copied; load the model in every process")

    @property
    def device(self) -> torch.device:
        """Where the model is; inputs may be anywhere."""
        return self.target.device

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration, as in `transformers`."""
        return self.target.model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's own, which counts as `generate` says."""
        return self.target.model.generation_config

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
            trained = decoding_options(drafter, self.manifest, self.folder)
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
    def generate(self, prompts: str, params: Params | None = None, **options: Any) -> Output: ...

    @overload
    def generate(
        self, prompts: Prompt | Sequence[Prompt] | None = None, params: Any = None, **options: Any
    ) -> Any: ...

    def generate(
        self,
        prompts: Any = None,
        params: Params | Sequence[Params] | None = None,
        *,
        streamer: BaseStreamer | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Generate for one prompt, or for several in one batch.

        It may be called as `transformers`' is: `generate(**inputs, do_sample=True, max_length=200)`.
        Of the checkpoint's own generation config only the EOS ids count, and decoding is greedy; but
        a request with a `GenerationConfig`, `do_sample` (either value) or `use_model_defaults=True`
        takes from it what it leaves unset.

        Args:
            prompts: text (as it is: no chat template is applied, but the prompt format that the
                checkpoint's `draftless.json` names is), token ids or chat messages; or a list of
                such; an integer tensor or array `[T]` or `[B, T]`; a `BatchEncoding`. Padding of
                `[B, T]` is what `attention_mask` says; without it, as in `transformers`, a pad id
                that is no EOS id. Lists of ids are taken as they are.
            params: `SamplingParams` or a `GenerationConfig` (whose unset fields are the model's own, as in
                `transformers`); or one per prompt.
            streamer: a `transformers` streamer; one prompt only. It is ended in any case.
            batch_size: most prompts that are decoded together; None decodes all. It does not change
                the output.
            **options: fields of `SamplingParams`, such as `temperature=0.7`; what `transformers`'
                `generate` takes, such as `input_ids`, `attention_mask` (`[B, T]`, 0 at padding),
                `generation_config`, `do_sample`, `max_length` (which counts the prompt, padding
                included); and `use_model_defaults`.

        Returns:
            One `Output`, or a list of them in the order of a list (or the rows) of prompts.

        Raises:
            InputError: a prompt is empty, too long or has ids outside the vocabulary.
            ConfigError: an option is unknown or cannot be honoured.
            CapabilityError: the model was put in training mode.
        """
        try:
            read = self._read(prompts, params, options)
            requests = make_requests(self.target, self._encoder, read, params, options)
            if streamer is not None:
                if len(requests) != 1:
                    raise ConfigError(f"a streamer takes one prompt, not {len(requests)}")
                streamer.put(torch.tensor([requests[0].row.token_ids]))
            outputs: list[Output] = []
            for batch in batches_of(requests, batch_size):
                outputs += self._run(batch, streamer)
        finally:
            if streamer is not None:
                streamer.end()  # or who reads it in another thread waits for ever
        return outputs if read.is_batch else outputs[0]

    def _run(self, requests: Sequence[Request], streamer: BaseStreamer | None) -> list[Output]:
        """Decode one batch."""
        reasons: dict[int, Any] = {}
        for request, record in decode(self.target, self.drafter, requests):
            reasons[request.row.request_id] = record.verdict.finish_reason
            if streamer is not None:
                for token_id in record.verdict.token_ids:
                    streamer.put(torch.tensor([token_id]))
        return [
            output_of(self.target, request, reasons[request.row.request_id]) for request in requests
        ]

    def chat(
        self,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> Output:
        """Answer one conversation, rendered by the tokenizer's chat template.

        Args:
            messages: each with `role` and `content`: text, or OpenAI's list of text parts.
            params: as in `generate`.
            tools: JSON schemas or functions that the template shows to the model.
            chat_template_kwargs: further variables of the template, such as `enable_thinking`.
            streamer: as in `generate`.
            **options: as in `generate`.

        Raises:
            InputError: a message cannot be used, or the template refuses the conversation.
            ConfigError: the template does not use what it is given; and as `generate`.
        """
        try:
            ids = self.encode_chat(messages, tools=tools, chat_template_kwargs=chat_template_kwargs)
        except BaseException:
            if streamer is not None:
                streamer.end()
            raise
        output: Output = self.generate(ids, params, streamer=streamer, **options)
        return output

    def stream(
        self, prompt: Any = None, params: Params | None = None, **options: Any
    ) -> Iterator[Chunk]:
        """Generate for one prompt; yields a `Chunk` per step, the last one with the `Output`.

        Arguments and errors as `generate`.
        """
        read = self._read(prompt, params, options)
        is_one_row = read.width is not None and len(read.items) == 1
        if read.is_batch and not is_one_row:
            raise InputError("stream takes one prompt; use generate for a list")
        (request,) = make_requests(self.target, self._encoder, read, params, options)
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[Chunk]:
        for _, record in decode(self.target, self.drafter, [request]):
            yield chunk_of(self.target, request, record)

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of one prompt, as `generate` encodes it."""
        read = read_prompts(prompt)
        if len(read.items) != 1:
            raise InputError(f"encode takes one prompt, got {len(read.items)}")
        return self._encoder.encode(read.items[0])

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids of a conversation and of what asks for the next answer; arguments as `chat`."""
        return self._encoder.encode_chat(messages, tools, chat_template_kwargs)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works: not for a checkpoint that was trained on plain prompts."""
        return self._encoder.has_chat_template

    @property  # anew each time: the parts may be replaced
    def _encoder(self) -> PromptEncoder:
        own = self.manifest.prompt_format if self.manifest is not None else None
        return PromptEncoder(self.tokenizer, own)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """EOS ids of the model's generation config, else of its tokenizer."""
        return eos_token_ids(self.target, self.tokenizer)

    def resolve_params(
        self, params: Params | None = None, *, prompt_len: int = 1, **options: Any
    ) -> SamplingParams:
        """What `generate` makes of these arguments for a prompt of `prompt_len` tokens."""
        return resolve_params(params, options, prompt_len, self.generation_config)

    def _read(self, prompts: Any, params: object, options: dict[str, Any]) -> Prompts:
        padding = padding_of(self.target, self.tokenizer, params, options)
        return read_call(prompts, options, padding)


def _target_of(model: Any, how: dict[str, Any]) -> TargetModel:
    """A loaded model, also wrapped, as a target."""
    dtype, device, int8 = (how.pop(name) for name in ("dtype", "device", "int8"))
    if dtype is not None or device is not None or int8:
        raise ConfigError("a loaded model has its dtype, device and weights; leave them out")
    return TargetModel(unwrap(model), **how)


_OPTIONS = tuple(inspect.signature(Draftless.from_pretrained).parameters)
