"""`draftless calibrate tree`: which ranks of a drafter's guesses are worth a node here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from draftless.cli import options
from draftless.cli.bench_methods import split as values_of
from draftless.cli.calibrate import TEXTS_NAME, own_texts
from draftless.cli.calibrate_common import check_installable, install, read_prompts
from draftless.cli.common import load_model, progress_bar, resumable, set_up_torch, stderr
from draftless.errors import ArtifactError, ConfigError
from draftless.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from draftless import Draftless
    from draftless.calibration.texts import OwnText
    from draftless.calibration.tree_search import TreeOptions
    from draftless.prices import PriceList


def tree(  # noqa: PLR0913 - the command line is derived from the signature
    data: options.Texts,
    output: options.OutputFolder,
    model: options.ModelOption = None,
    drafters: options.Drafters = None,
    domain: options.Domains = None,
    split: options.Split = "train",
    limit: options.TextLimit = 12,
    text_tokens: options.TextTokens = 64,
    temperature: options.Temperatures = None,
    prices: options.Prices = None,
    seed: options.Seed[int] = 0,
    is_installed: options.Install = False,
    resume: options.Resume = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool] = False,
    int8: options.Int8 = False,
) -> None:
    """Learn the static trees of recycling and tr-jacobi from the model's own texts (Sequoia, arXiv 2402.12374).

    The model continues some prompts itself; on half of these texts is counted which ranks hit at
    which depth, and the tree with the most tokens per second under this machine's price list is
    compared with the default one on the other half. OUTPUT/DRAFTER.json is what the drafter takes as
    its template; --install writes it into the model's folder, if it is shown to be faster.

    [bold]Examples[/bold]

        draftless calibrate tree --data ./data --output runs/tree
        draftless calibrate tree --model ./my-model --data own.jsonl --output runs/tree --install
        draftless calibrate tree --data ./data --output runs/tree --drafters recycling --temperature 0,1
    """
    from draftless.calibration.texts import TextOptions
    from draftless.calibration.tree_search import TreeOptions

    names = _known(values_of(drafters))
    learning = TreeOptions(_numbers(values_of(temperature) or ["0"]), seed)
    writing = TextOptions(per_domain=limit, num_tokens=text_tokens, seed=seed)
    target_folder = check_installable(model) if is_installed else None
    _check_output(output, names, is_resumed=resume)
    prompts = read_prompts(data, split, domain or ())
    set_up_torch(threads)
    loaded = load_model(
        model, dtype=dtype, device=device, drafter="none", compile=compile, int8=int8
    )
    known = _prices(prices, loaded)
    with resumable(output):
        texts = own_texts(loaded, prompts, writing, output / TEXTS_NAME).texts
        for name in names:
            file = output / f"{name}.json"
            found = _learned(loaded, name, texts, known, learning, file)
            _show(found, file)
            if target_folder is not None:
                _install(found, target_folder)


def _known(names: list[str]) -> list[str]:
    """The drafters that are asked for; all that have a template if none is.

    Raises:
        ConfigError: one has none.
    """
    from draftless.calibration.rank_trees import KINDS

    for name in names:
        if name not in KINDS:
            raise ConfigError(f"{name!r} has no template; those that have are {', '.join(KINDS)}")
    return names or list(KINDS)


def _numbers(values: list[str]) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(map(float, values)))
    except ValueError as error:
        raise ConfigError(f"--temperature {','.join(values)} are not numbers: {error}") from error


def _check_output(output: Path, names: list[str], *, is_resumed: bool) -> None:
    there = [name for name in names if (output / f"{name}.json").exists()]
    if there and not is_resumed:
        raise ConfigError(
            f"{output} holds a template of {', '.join(there)} already; keep it with --resume, or "
            "choose another --output"
        )


def _prices(file: Path | None, model: Draftless) -> PriceList:
    from draftless.engine.latency import prices_of
    from draftless.prices import read_price_list

    if file is not None:
        return read_price_list(file)
    with stderr.status("Timing passes ..."):
        return prices_of(model.target)


def _learned(
    model: Draftless,
    name: str,
    texts: tuple[OwnText, ...],
    prices: PriceList,
    chosen: TreeOptions,
    file: Path,
) -> dict[str, Any]:
    """The content of a drafter's file: that is there already, or learned now and written."""
    from draftless.calibration.tree_search import learned_from, search_template
    from draftless.jsonl import write_json

    if file.exists():
        stderr.print(f"{file} is there already", soft_wrap=True)
        return _read(file, learned_from(model, texts, chosen))
    with progress_bar() as progress:
        task = progress.add_task(f"Drafting with {name}", total=None)
        result = search_template(model, name, texts, prices, chosen, lambda: progress.advance(task))
    found = result.to_dict()
    write_json(file, found)
    return found


def _read(file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of a file that was learned from the same model, texts and options.

    Raises:
        ConfigError: it was learned from others.
        ArtifactError: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        before = dict(found["options"])
        is_whole = {"drafter", "template", "budget", "held_out"} <= set(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged: {error!r}; remove it") from error
    if not is_whole:
        raise ArtifactError(f"{file} is damaged; remove it")
    for name, value in facts.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{file} was learned with {name}={before.get(name)}, not {value}; use the same "
                "model, data and options, or another --output"
            )
    return found


def _install(found: dict[str, Any], folder: Path) -> None:
    """Write the template beside what the method has already, if it is shown to be faster."""
    name = found["drafter"]
    if not found["held_out"]["is_better"]:
        stderr.print(f"{name}: not installed; the default tree stays", soft_wrap=True)
        return
    methods = (read_manifest(folder) or Manifest()).methods
    own = {key: found[key] for key in ("template", "budget")}
    install(folder, name, {**methods.get(name, {}), **own})
    stderr.print(f"{name}: installed in {folder / 'draftless.json'}", soft_wrap=True)


def _show(found: dict[str, Any], file: Path) -> None:
    """What was found, on standard error; a JSON line of it on standard output."""
    held, margin = found["held_out"], found["held_out"]["margin"]
    paths = found["template"]
    stderr.print(
        f"{found['drafter']}: {len(paths)} nodes and the root, depth {max(map(len, paths))}; "
        f"{held['tokens_per_step']:.2f} tokens a step, the default {held['default_tokens_per_step']:.2f}; "
        f"tokens per second on {held['num_texts']} held-out texts, passes at their prices: "
        f"{margin['margin']:+.1%} ({margin['low']:+.1%} to {margin['high']:+.1%})",
        soft_wrap=True,
    )
    if not held["is_better"]:
        stderr.print(
            "the interval is not clear of 0: on these texts the tree is not shown to be faster than "
            "the default. More --limit texts may tell",
            soft_wrap=True,
        )
    told = {
        "output": str(file),
        "drafter": found["drafter"],
        "budget": found["budget"],
        "margin": margin["margin"],
        "is_better": held["is_better"],
    }
    typer.echo(json.dumps(told))
