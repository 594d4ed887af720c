"""`draftless calibrate`: what a model can leave out while it drafts; what its passes cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from draftless.cli import options
from draftless.cli.calibrate_common import check_installable, install, read_prompts
from draftless.cli.common import load_model, progress_bar, resumable, set_up_torch, stderr

if TYPE_CHECKING:
    from draftless import Draftless
    from draftless.calibration.skip_search import SearchOptions, SkipResult
    from draftless.calibration.texts import OwnTexts, Prompt, TextOptions

TEXTS_NAME = "texts.json"

calibrate_app = typer.Typer(
    no_args_is_help=True, help="Fit drafting to a model, its texts and this machine."
)


@calibrate_app.callback()
def calibrate() -> None:
    """Fit drafting to a model, its texts and this machine."""


@calibrate_app.command()
def skip(  # noqa: PLR0913 - the command line is derived from the signature
    data: options.Texts,
    output: options.OutputFolder,
    model: options.ModelOption = None,
    domain: options.Domains = None,
    split: options.Split = "train",
    limit: options.TextLimit = 24,
    text_tokens: options.TextTokens = 64,
    trials: options.Trials = 150,
    minutes: options.Minutes = None,
    objective: options.Objective = "rounds",
    depth: options.Depth = 12,
    protect_ends: options.ProtectEnds = True,
    random: options.NumRandom = 20,
    seed: options.Seed[int] = 0,
    is_installed: options.Install = False,
    resume: options.Resume = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Search the sub-layers that drafting does best without (Self-SD, arXiv 2309.08168).

    The model continues some prompts itself; sets are scored on half of these texts, and the best one
    is compared with random sets of its size on the other half. OUTPUT/skip.json is what the drafter
    layer-skip takes as its skip_set; with --install the model's folder says it by itself.

    [bold]Examples[/bold]

        draftless calibrate skip --data ./data --output runs/skip
        draftless calibrate skip --model ./my-model --data own.jsonl --output runs/skip --install
        draftless calibrate skip --data ./data --output runs/skip-sql --domain sql --minutes 10
        draftless calibrate skip --data ./data --output runs/skip --trials 500 --resume
    """
    from draftless.calibration.skip_search import SearchOptions
    from draftless.calibration.texts import TextOptions

    searching = SearchOptions(
        trials=trials, minutes=minutes, seed=seed, objective=objective,  # type: ignore[arg-type]
        depth=depth, protect_ends=protect_ends, num_random=random,
    )  # fmt: skip
    writing = TextOptions(per_domain=limit, num_tokens=text_tokens, seed=seed)
    target_folder = check_installable(model) if is_installed else None
    prompts = read_prompts(data, split, domain or ())
    set_up_torch(threads)
    loaded = load_model(model, dtype=dtype, device=device, drafter="none")
    with resumable(output):
        texts = own_texts(loaded, prompts, writing, output / TEXTS_NAME)
        result = _search(loaded, texts, searching, output, is_resumed=resume)
    if target_folder is not None:
        install(target_folder, "layer-skip", result.setting.to_dict())
        stderr.print(f"installed in {target_folder / 'draftless.json'}", soft_wrap=True)
    _show(result, output)


def own_texts(model: Draftless, prompts: list[Prompt], chosen: TextOptions, file: Path) -> OwnTexts:
    """Texts by the model itself, under a progress bar; what was left out is said."""
    from draftless.calibration.texts import read_or_make_texts

    with progress_bar() as progress:
        domains = len({prompt.domain for prompt in prompts})
        task = progress.add_task("Writing texts", total=domains * chosen.per_domain)
        texts = read_or_make_texts(
            file, model, prompts, chosen, lambda count: progress.update(task, advance=count)
        )
    left_out = {
        "too_long": "too long for the context",
        "too_short": "answered in a few tokens",
    }
    told = [f"{n} {left_out[why]}" for why, n in sorted(texts.left_out.items())]
    stderr.print(
        f"{len(texts.texts)} texts of {len({t.domain for t in texts.texts})} domains"
        + (f"; left out: {', '.join(told)}" if told else "")
    )
    return texts


def _search(
    model: Draftless, texts: OwnTexts, chosen: SearchOptions, output: Path, *, is_resumed: bool
) -> SkipResult:
    from draftless.calibration.skip_search import search_skip_setting

    with progress_bar() as progress:
        task = progress.add_task("Measuring passes", total=chosen.trials)

        def tell(done: int, speed_up: float) -> None:
            best = f"Searching, best so far {speed_up:.2f}x"
            progress.update(task, completed=done, description=best)

        return search_skip_setting(
            model, texts.texts, chosen, output, is_resumed=is_resumed, on_trial=tell
        )


def _show(result: SkipResult, output: Path) -> None:
    """What was found, on standard error; a JSON line of it on standard output."""
    setting, compared = result.setting, result.comparison
    total = 2 * result.costs.num_layers
    mean, best = compared.over_mean, compared.over_best
    stderr.print(
        f"{len(result.trials)} sets tried. Skip {setting.skip_set.num_skipped} of {total} "
        f"sub-layers: {setting.skip_set}; threshold {setting.threshold}, depth {setting.depth}, "
        f"{setting.siblings} siblings\n"
        f"{result.best.tokens_per_round:.2f} tokens a round, a draft pass costs "
        f"{result.share:.2f} of a full one: modelled {result.speed_up:.2f}x over plain decoding\n"
        f"against {len(compared.random_values)} random sets of its size, on {compared.num_texts} "
        f"held-out texts: {mean.margin:+.1%} ({mean.low:+.1%} to {mean.high:+.1%}) over their mean, "
        f"{best.margin:+.1%} ({best.low:+.1%} to {best.high:+.1%}) over the best of them",
        soft_wrap=True,
    )
    if not mean.is_clear:
        stderr.print(
            "the interval is not clear of 0: on these texts the set is not shown to be better than "
            "chance. More --limit texts or more --trials may tell",
            soft_wrap=True,
        )
    told = {
        "output": str(output / "skip.json"),
        "setting": setting.to_dict(),
        "modelled_speed_up": result.speed_up,
        "margin_over_random": mean.margin,
        "is_clear_of_chance": mean.is_clear,
    }
    typer.echo(json.dumps(told))
