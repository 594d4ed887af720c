"""`draftless calibrate anchors`: a skip set for each domain, and what tells the domains apart."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from draftless.cli import options
from draftless.cli.calibrate import TEXTS_NAME, own_texts
from draftless.cli.calibrate_common import check_installable, install, read_prompts
from draftless.cli.common import load_model, progress_bar, resumable, set_up_torch, stderr
from draftless.errors import ConfigError, InputError
from draftless.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftless import Draftless
    from draftless.calibration.anchors import AnchorOptions, Domain
    from draftless.calibration.domain_settings import DomainSetting
    from draftless.calibration.skip_search import SearchOptions
    from draftless.calibration.texts import OwnText, Prompt, TextOptions
    from draftless.drafters.anchor_store import Anchors, AnchorStore
    from draftless.skip_set import SkipSetting

METHOD = "knn-ssd"
LAYER_SKIP = "layer-skip"


@dataclass(frozen=True)
class Build:
    """What a store is built of and how.

    Attributes:
        model: whose anchors they are.
        prompts: by domain.
        unseen: prompts of domains that stay out of the store.
        output: folder of the store.
        anchors: how anchors are made.
        texts: how texts for the searches are made.
        search: how every search goes.
        settings: folder of ready skip files, or None.
        is_resumed: go on with what stands in the folder.
    """

    model: Draftless
    prompts: dict[str, list[Prompt]]
    unseen: dict[str, list[Prompt]]
    output: Path
    anchors: AnchorOptions
    texts: TextOptions
    search: SearchOptions
    settings: Path | None
    is_resumed: bool


def anchors(  # noqa: PLR0913 - the command line is derived from the signature
    data: options.Texts,
    output: options.OutputFolder,
    model: options.ModelOption = None,
    domain: options.Domains = None,
    unseen: options.Unseen = None,
    split: options.Split = "train",
    samples: options.Samples = 200,
    per_domain: options.PerDomain = 10,
    kind: options.Kind = "samples",
    clusters: options.Clusters = None,
    keep: options.Keep = 0.95,
    limit: options.TextLimit = 40,
    text_tokens: options.TextTokens = 64,
    trials: options.Trials = 150,
    minutes: options.Minutes = None,
    objective: options.Objective = "rounds",
    depth: options.Depth = 12,
    protect_ends: options.ProtectEnds = True,
    settings: options.Settings = None,
    seed: options.Seed[int] = 0,
    is_installed: options.Install = False,
    resume: options.Resume = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Build the anchor store of the drafter knn-ssd: a skip set per domain, a request takes its own.

    Every search has the budget of --trials and --minutes: one for each domain, and one for a general
    set, which drafts requests that are like no domain, and domains whose own set is not clearly
    better. Try it with: draftless generate --drafter knn-ssd, after --install.

    [bold]Examples[/bold]

        draftless calibrate anchors --data ./data --output runs/anchors --unseen dialogue
        draftless calibrate anchors --model ./my-model --data ./data --output runs/anchors --install
        draftless calibrate anchors --data prompts.jsonl --output runs/anchors --clusters auto
        draftless calibrate anchors --data ./data --output runs/anchors --resume
    """
    from draftless.calibration.anchors import AnchorOptions
    from draftless.calibration.skip_search import SearchOptions
    from draftless.calibration.texts import TextOptions

    making = AnchorOptions(samples, per_domain, kind, _clusters(clusters), keep, seed)  # type: ignore[arg-type]
    searching = SearchOptions(
        trials=trials, minutes=minutes, seed=seed, objective=objective,  # type: ignore[arg-type]
        depth=depth, protect_ends=protect_ends,
    )  # fmt: skip
    writing = TextOptions(per_domain=limit, num_tokens=text_tokens, seed=seed)
    target_folder = check_installable(model) if is_installed else None
    _check_output(output, is_resumed=resume)
    seen, strange = _by_domain(data, split, domain or [], unseen or [])
    set_up_torch(threads)
    loaded = load_model(model, dtype=dtype, device=device, drafter="none")
    build = Build(
        loaded, seen, strange, output, making, writing, searching, settings, is_resumed=resume
    )
    _carry_out(build, target_folder)


def _carry_out(build: Build, checkpoint: Path | None) -> None:
    """Build, install into a checkpoint, and show; Ctrl-C ends it with a word on how to go on."""
    with resumable(build.output):
        store = build_store(build)
    if checkpoint is not None:
        install_store(store, build.output, checkpoint)
        stderr.print(f"installed in {checkpoint / 'draftless.json'}", soft_wrap=True)
    _show(store, build.output)


def _clusters(given: str | None) -> Any:
    """`auto`, a number or None.

    Raises:
        ConfigError: it is something else.
    """
    if given is None or given == "auto":
        return given
    if not given.isdecimal():
        raise ConfigError(f"--clusters {given!r} is neither auto nor a number of domains")
    return int(given)


def _check_output(output: Path, *, is_resumed: bool) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not is_resumed:
        raise ConfigError(
            f"{output} exists and is not empty; go on with --resume, or choose another --output"
        )


def _by_domain(
    data: str, split: str, wanted: Sequence[str], unseen: Sequence[str]
) -> tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]]:
    """Prompts of the store's domains, and of unseen ones.

    Raises:
        ConfigError: a domain is wanted and unseen.
        InputError: nothing is left, or a name cannot be that of a domain's folder.
    """
    from draftless.drafters.anchor_store import GENERAL

    both = sorted(set(wanted) & set(unseen))
    if both:
        raise ConfigError(f"{', '.join(both)} cannot be both --domain and --unseen")
    found: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in read_prompts(data, split, (*wanted, *unseen) if wanted else ()):
        found[prompt.domain].append(prompt)
    missing = [name for name in unseen if name not in found]
    if missing:
        raise InputError(
            f"{data} has no domain {', '.join(missing)}; it has {', '.join(sorted(found))}"
        )
    for name in found:
        if name == GENERAL or Path(name).name != name or name.startswith("."):
            raise InputError(f"a domain cannot be called {name!r}; rename it in {data}")
    strange = {name: found.pop(name) for name in unseen}
    if not found:
        raise InputError(f"every domain of {data} is --unseen; leave one for the store")
    return dict(sorted(found.items())), strange


def build_store(build: Build) -> AnchorStore:
    """Vectors, anchors, searches; the store and its map are written at the end."""
    from draftless.calibration.anchors import (
        MAP_NAME,
        anchor_map,
        build_anchors,
        regroup,
        routing_facts,
    )
    from draftless.jsonl import write_json

    domains, unseen = _vectors(build, build.prompts), _vectors(build, build.unseen)
    silhouettes: dict[int, float] = {}
    if build.anchors.num_domains is not None:
        domains, silhouettes = regroup(domains, build.anchors)
    anchors = build_anchors(domains, build.anchors)
    routing = routing_facts(anchors, domains, unseen)
    _show_routing(anchors, routing)
    general, found = _settings(build, domains)
    facts = {
        "num_samples": {name: len(domain.samples) for name, domain in domains.items()},
        "keep": build.anchors.keep,
        "search": asdict(build.search),
        "silhouettes": {str(count): value for count, value in silhouettes.items()},
        "routing": routing,
        "settings": {name: setting.to_dict() for name, setting in found.items()},
    }
    store = _assemble(build, anchors, general, found, facts)
    write_json(build.output / MAP_NAME, anchor_map(anchors, domains, unseen))
    store.save(build.output)
    return store


def _vectors(build: Build, prompts: dict[str, list[Prompt]]) -> dict[str, Domain]:
    """Vectors of every domain's prompts; those of a finished domain are on the disk."""
    from draftless.calibration.anchors import read_domain

    domains = {}
    with progress_bar() as progress:
        most = sum(min(len(p), build.anchors.num_samples * 5 // 4) for p in prompts.values())
        task = progress.add_task("Vectors of prompts", total=most)
        for name, own in prompts.items():
            file = build.output / "vectors" / f"{name}.safetensors"
            domains[name] = read_domain(
                build.model, own, build.anchors, file, lambda: progress.advance(task)
            )
    return domains


def _settings(
    build: Build, domains: dict[str, Domain]
) -> tuple[SkipSetting, dict[str, DomainSetting]]:
    """The general setting and one per domain, under a progress bar."""
    from draftless.calibration.domain_settings import find_settings, read_given
    from draftless.calibration.texts import Prompt
    from draftless.drafters.anchor_store import GENERAL

    model, folder = build.model, build.settings
    given = {}
    if folder is not None:
        given = read_given(folder, list(domains), model.target.fingerprint())
    prompts = [Prompt(name, one) for name, domain in domains.items() for one in domain.prompts]
    texts: dict[str, list[OwnText]] = {name: [] for name in domains}
    if not {*domains, GENERAL} <= set(given):
        for text in own_texts(model, prompts, build.texts, build.output / TEXTS_NAME).texts:
            texts[text.domain].append(text)
    with progress_bar() as progress:
        task = progress.add_task("Measuring passes", total=build.search.trials)

        def tell(domain: str, num_trials: int, speed_up: float) -> None:
            best = f"{domain}: best so far {speed_up:.2f}x"
            progress.update(task, completed=num_trials, description=best)

        return find_settings(
            model, texts, build.search, build.output,
            given=given, is_resumed=build.is_resumed, on_trial=tell,
        )  # fmt: skip


def _assemble(
    build: Build,
    anchors: Anchors,
    general: SkipSetting,
    found: dict[str, DomainSetting],
    facts: dict[str, Any],
) -> AnchorStore:
    from draftless.drafters.anchor_store import AnchorStore
    from draftless.provenance import collect_provenance

    return AnchorStore(
        vectors=anchors.vectors,
        labels=anchors.labels,
        max_distance=anchors.max_distance,
        settings={name: found[name].setting for name in sorted(set(anchors.labels))},
        general=general,
        kind=build.anchors.kind,
        model_fingerprint=build.model.target.fingerprint(),
        facts=facts,
        provenance=collect_provenance(),
    )


def install_store(store: AnchorStore, folder: Path, checkpoint: Path) -> None:
    """Let a checkpoint name a store; one that lies elsewhere is copied to its `knn-ssd/`.

    A checkpoint without a skip set of its own gets the general one for `layer-skip`.
    """
    from draftless.calibration.anchors import MAP_NAME

    if folder.resolve().is_relative_to(checkpoint.resolve()):
        place = folder.resolve().relative_to(checkpoint.resolve())
    else:
        place = Path(METHOD)
        store.save(checkpoint / place)
        shutil.copyfile(folder / MAP_NAME, checkpoint / place / MAP_NAME)
    install(checkpoint, METHOD, {"store": place.as_posix()})
    manifest = read_manifest(checkpoint)
    if manifest is not None and LAYER_SKIP not in manifest.methods:
        install(checkpoint, LAYER_SKIP, store.general.to_dict())


def _show_routing(anchors: Anchors, routing: dict[str, Any]) -> None:
    far = [f"{share['general_share']:.1%} of {name}" for name, share in routing["unseen"].items()]
    stderr.print(
        f"{len(anchors.labels)} anchors of {len(set(anchors.labels))} domains; "
        f"{routing['accuracy']:.1%} of {routing['num_held_out']} held-out prompts go to their own "
        f"domain, {routing['general_share']:.1%} to the general set (farther than "
        f"{anchors.max_distance:.3f})" + (f"; unseen: {', '.join(far)}" if far else ""),
        soft_wrap=True,
    )


def _show(store: AnchorStore, output: Path) -> None:
    """Which domain has a set of its own, on standard error; a JSON line on standard output."""
    table = Table(
        "domain", "drafts with", "own over general (95 %)", "sub-layers skipped", box=None
    )
    for name, how in sorted(store.facts["settings"].items()):
        gain = how["gain"]
        told = f"{gain['margin']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%})" if gain else "-"
        skipped = str(store.settings[name].skip_set.num_skipped)
        table.add_row(name, _SHIPS[how["ships"]], told, skipped)
    stderr.print(table)
    if any(how["ships"] == "general" for how in store.facts["settings"].values()):
        stderr.print(
            "the general set ships where the interval does not lie above 0", soft_wrap=True
        )
    routing = store.facts["routing"]
    line = {
        "output": str(output),
        "accuracy": routing["accuracy"],
        "general_share": routing["general_share"],
        "unseen_general_share": {n: u["general_share"] for n, u in routing["unseen"].items()},
        "max_distance": store.max_distance,
        "ships": {name: how["ships"] for name, how in store.facts["settings"].items()},
    }
    typer.echo(json.dumps(line))


_SHIPS = {
    "own": "its own set",
    "general": "the general set",
    "given": "the given set",
    "untried": "the general set (too few texts)",
}
