"""From a stock model to a fast and tested forward pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from draftless.checkpoint.gguf import model_keywords, source_keywords
from draftless.checkpoint.weights import load_weights
from draftless.engine import native
from draftless.engine.attention import ATTENTION_NAME, register_attention
from draftless.engine.build import NoCompiler
from draftless.engine.cache import CacheShape, cache_keyword
from draftless.engine.capabilities import check_config, check_source, parse_device, parse_dtype
from draftless.engine.cpu.forward import NativeForward, states_in_float32
from draftless.engine.cpu.paging import give_back_free_memory
from draftless.engine.cpu.values import NotLowered
from draftless.engine.precision import InFloat32
from draftless.engine.self_test import SelfTest
from draftless.engine.shapes_alone import ShapesAlone
from draftless.engine.stable_bits import check_stable_bits
from draftless.engine.tree_pass import TreePass
from draftless.errors import ArtifactError, CapabilityError, ConfigError, DraftlessError
from draftless.layout import chain_parents, tree_layout
from draftless.skip_set import SkipSet
from draftless.sublayers import decoder_layers

if TYPE_CHECKING:
    from draftless.engine.compiled.forward import CompiledForward
    from draftless.engine.target import TargetModel

Compile = bool | Literal["auto", "inductor"]
Progress = Callable[[str], None]

log = logging.getLogger("draftless")

_HALVES = (torch.bfloat16, torch.float16)
_NOISE = 2.0  # times the rounding of the model's own code
_NEAR = 0.02  # standard deviations of the logits


def say_nothing(_: str) -> None:
    """What is told of progress where nobody asks."""


def load_stock(
    path: str | Path,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    hub_options: dict[str, Any],
) -> PreTrainedModel:
    """A checkpoint folder, hub id or GGUF file as a `transformers` model.

    Raises:
        ArtifactError: it cannot be read, or lacks weights.
        CapabilityError: the configuration tells that exact tree decoding cannot work with it.
    """
    place = parse_device(device)
    check_source(path)
    try:
        check_config(AutoConfig.from_pretrained(**source_keywords(path), **hub_options))
        model = load_weights(**model_keywords(path, parse_dtype(dtype)), **hub_options)
    except (CapabilityError, ArtifactError):
        raise
    except Exception as error:
        where = "" if Path(path).exists() else " (no folder here, so a name on the hub)"
        raise ArtifactError(f"cannot load a model from {str(path)!r}{where}: {error}") from error
    return model if place is None else model.to(place)


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Switch a model's attention.

    Raises:
        ConfigError: there is no such attention, or the family does not allow it.
    """
    config = model.config.get_text_config()
    if attention not in (ATTENTION_NAME, "sdpa", "eager"):
        raise ConfigError(f"attention {attention!r} is unknown; use draftless, sdpa or eager")
    if attention == ATTENTION_NAME:
        register_attention()
    elif attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        raise ConfigError(
            f"{config.model_type} caps its attention scores, which sdpa cannot; use draftless or eager"
        )
    model.set_attn_implementation(attention)


def measure_cache_shape(model: PreTrainedModel) -> CacheShape:
    """Run two tokens through a model and look at what it caches.

    Raises:
        CapabilityError: keys and values of its layers differ in shape.
    """
    cache = DynamicCache()
    device = next(model.parameters()).device
    token_ids = torch.zeros((1, 2), dtype=torch.long, device=device)
    with ShapesAlone(token_ids.shape[1]):
        model.base_model(input_ids=token_ids, use_cache=True, **{cache_keyword(model): cache})
    shapes = {tuple(t.shape) for layer in cache.layers for t in (layer.keys, layer.values)}
    if len(shapes) != 1 or len(cache.layers) != model.config.get_text_config().num_hidden_layers:
        raise CapabilityError(
            f"{type(model).__name__} caches {len(cache.layers)} layers of shapes "
            f"{sorted(shapes)}; one shape for keys and values of every layer is supported"
        )
    keys = cache.layers[0].keys
    return CacheShape(len(cache.layers), keys.shape[1], keys.shape[3], keys.dtype, keys.device)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a model raises while it is tried is a refusal.

    Raises:
        CapabilityError: with the first line of what was raised.
    """
    try:
        yield
    except DraftlessError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CapabilityError(
            f"{what} cannot run with our cache and attention ({type(error).__name__}: {reason}); "
            "try attention='eager', or use transformers alone"
        ) from error


def fast_pass(
    target: TargetModel, test: SelfTest | None, how: Compile
) -> NativeForward | CompiledForward | None:
    """The forward pass that `how` asks for, tested; None stands for the model's own code.

    On a CPU it is the native one. For a model that this does not know `True` takes pieces that Inductor
    compiles, which needs a minute; `auto` takes the model's own code, also where the native pass fails its
    test, and a line says why. Without a `test` the native pass was proved before, with the same weights and
    code.

    Raises:
        CapabilityError: the native pass gives something else than the model, and `how` is `True`.
    """
    name = type(target.model).__name__
    try:
        if how == "inductor":
            raise NotLowered("not asked for")
        return _native(target, test)
    except (NotLowered, NoCompiler) as error:
        log.info("no native forward pass for %s: %s", name, error)
    except Exception as error:
        kind = "" if isinstance(error, DraftlessError) else f"{type(error).__name__}: "
        reason = kind + str(error).strip().partition("\n")[0]
        if how != "auto":
            raise CapabilityError(
                f"the native forward pass of {name} failed its test: {reason}; "
                "load it with compile=False"
            ) from error
        log.warning(
            "the native forward pass of %s failed its test: %s; going on with the model's own code",
            name,
            reason,
        )
    return None if how == "auto" else _inductor(target)


def _native(target: TargetModel, test: SelfTest | None) -> NativeForward:
    if target.device.type != "cpu":
        raise NotLowered(f"a model on {target.device}")
    if (attention := target.model.config._attn_implementation) != ATTENTION_NAME:
        raise NotLowered(f"{attention!r} attention")
    kinds = list(target.windows)
    found = NativeForward(target.view_of, kinds, target.num_layers, target.dtype)
    with torch.inference_mode():
        if test is None:
            found.prepare(is_proved=True)
            return found
        make = partial(states_in_float32, test.view, kinds, target.num_layers)
        test.check(make, target.cache_shape, "the native forward pass", tells_way_out=False)
        give_back_free_memory()
        found.prepare()
        found.prepare(test.skip_set)
        run = partial(found, test.skip_set)
        _check_logits(target, test.view, "the native forward pass", run, test.head_rows)
    return found


def prove_stable_bits(target: TargetModel, skip_set: SkipSet | None) -> bool:
    """Whether passes are batch-invariant on this model and machine, shown by trying.

    Args:
        target: with its compiled passes.
        skip_set: layers that are left out, which have the shapes of others.

    Raises:
        Nothing: a model whose passes are not is usable, and says so.
    """
    try:
        with torch.inference_mode():
            check_stable_bits(target, skip_set)
    except CapabilityError as error:
        log.info("%s", error)
        return False
    finally:
        give_back_free_memory()
    return True


def _inductor(target: TargetModel) -> CompiledForward | None:
    """Pieces that Inductor compiles; None, with a warning, where there can be none."""
    try:
        from draftless.engine.compiled.forward import CompiledForward  # imports Inductor: seconds

        place, _ = decoder_layers(target.model)
        kinds, dtype = list(target.windows), target.cache_shape.dtype
        found = CompiledForward(target.view_of, place, kinds, target.num_layers, dtype)
        if target.device.type == "cpu":
            for name in ("draws", *["attention"] * native.has_fast_products()):
                native.load(name)
        found.prepare()
        with torch.inference_mode():
            run = partial(found, None)
            _check_logits(target, target.model, "Inductor's pieces", run)
    except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
        warn_of(type(target.model).__name__, error)
        return None
    return found


def warn_of(what: str, error: Exception) -> None:
    """Say that something is not compiled."""
    warnings.warn(
        f"{what} cannot be compiled here "
        f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); going on "
        "without, which gives the same output more slowly. compile=False silences this",
        stacklevel=6,
    )


def _check_logits(
    target: TargetModel,
    view: Any,
    what: str,
    run: Callable[[TreePass], torch.Tensor],
    head_rows: torch.Tensor | None = None,
) -> None:
    """Logits in the model's own precision, of its head, too, may be no further from float32 than what the
    model's own code rounds.

    Args:
        target: of which model.
        view: its own code.
        what: the name of a pass in errors.
        run: the pass.
        head_rows: the logits of it that the view has; None: all.

    Raises:
        CapabilityError: they are.
    """
    tokens = [(7919 * index * index + 1) % target.vocab_size for index in range(16)]
    ids = [*tokens, tokens[0]]
    layout = tree_layout((*chain_parents(len(tokens)), 0))

    def logits(one: Callable[[TreePass], torch.Tensor]) -> torch.Tensor:
        return one(target.tree_pass(target.make_cache(1, len(ids)), ids, layout)).float()

    def eager(tree_pass: TreePass) -> torch.Tensor:
        out: torch.Tensor = view(**target.keywords(tree_pass)).logits
        return out[0]

    def tried(tree_pass: TreePass) -> torch.Tensor:
        found = run(tree_pass)
        return found if head_rows is None else found[:, head_rows]

    with InFloat32() if target.dtype in _HALVES else nullcontext():
        wide = logits(eager)
    errors = [float((logits(one) - wide).square().mean().sqrt()) for one in (tried, eager)]
    if not errors[0] <= _NOISE * errors[1] + _NEAR * float(wide.std()):
        raise CapabilityError(
            f"logits of {type(target.model).__name__} with {what} are off by {errors[0]:.3g} where the "
            f"model's own code rounds by {errors[1]:.3g}"
        )


def say_if_not_reproducible(target: TargetModel, how: Compile) -> None:
    """One line at load, with the way out."""
    if target.is_reproducible:
        return
    more = " or compile='auto'" if not how and target.device.type == "cpu" else ""
    log.warning(
        "%s in %s: the last bits of its logits depend on how many tokens a pass holds, so where two tokens "
        "are nearly equal the text may depend on the drafter and the batch; dtype='float32'%s makes it "
        "reproducible",
        type(target.model).__name__,
        str(target.dtype).removeprefix("torch."),
        more,
    )
