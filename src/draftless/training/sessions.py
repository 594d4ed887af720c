"""What a run was begun with, beside its checkpoints: a run that goes on is compared with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from draftless.errors import ArtifactError, ConfigError
from draftless.jsonl import write_json
from draftless.provenance import collect_provenance

RUN_NAME = "run.json"

HARMLESS = frozenset({
    "model", "data", "eval_data", "output", "epochs", "max_steps",
    "eval_every", "save_every", "log_every", "eval_records",
})  # fmt: skip
"""Options that may change when a run goes on. Where model and data lie may change, what they hold may
not. More epochs or steps make the run longer: from then on the learning rate follows the new length."""

_SAMPLES = 64  # values of a tensor that its fingerprint reads


def hash_documents(documents: Iterable[Mapping[str, Sequence[int]]]) -> str:
    """A fingerprint of token ids and labels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        digest.update(json.dumps([document["input_ids"], document["labels"]]).encode())
    return digest.hexdigest()


def hash_model(model: torch.nn.Module) -> str:
    """A fingerprint of a model: names and shapes of all its parameters, and some of their values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // _SAMPLES)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def run_facts(options: Mapping[str, Any], model: str, data: str, processes: int) -> dict[str, Any]:
    """What must be the same when a run goes on.

    Args:
        options: of the run.
        model: fingerprint of the model that it starts from.
        data: fingerprint of the documents that it trains on.
        processes: that train together; each has batches of its own.
    """
    kept = {name: value for name, value in options.items() if name not in HARMLESS}
    # An option that changes what the data become is named before the data are.
    facts = {**kept, "processes": processes, "model": model, "data": data}
    return dict(json.loads(json.dumps(facts)))  # tuples as a file has them


def check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Compare a run with the one whose checkpoints it goes on from.

    Raises:
        ConfigError: it differs, or was made by a version that did not write down what it did.
        ArtifactError: what was written down is damaged.
    """
    before = read_run(folder)
    if before is None:
        raise ConfigError(
            f"{folder} has no {RUN_NAME}, so that its run cannot be compared with this one "
            "(an older version wrote it); choose another --output"
        )
    for name, value in facts.items():
        known = before["facts"].get(name)
        if known != value and name in ("model", "data"):
            raise ConfigError(
                f"{folder} holds checkpoints of a run on another --{name} (its content differs); "
                f"give the same --{name}, or another --output"
            )
        if known != value:
            raise ConfigError(
                f"{folder} holds checkpoints of a run with {name}={known}, not {value}; "
                "--resume needs the same options (or choose another --output)"
            )


def begin_session(
    folder: Path, facts: Mapping[str, Any], options: Mapping[str, Any], step: int
) -> list[dict[str, Any]]:
    """Write down that training begins at `step`; all sessions up to this one.

    Sessions that left no checkpoint are dropped: nothing of them is in the weights.
    """
    before = read_run(folder) if step else None
    sessions = [one for one in (before or {}).get("sessions", ()) if one["first_step"] < step]
    changeable = {name: options[name] for name in ("epochs", "max_steps")}
    sessions.append({"first_step": step, **changeable, **collect_provenance()})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_NAME, {"facts": dict(facts), "sessions": sessions})
    return sessions


def read_run(folder: Path) -> dict[str, Any] | None:
    """What `begin_session` wrote, or None.

    Raises:
        ArtifactError: it is damaged.
    """
    file = folder / RUN_NAME
    if not file.exists():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        return {"facts": dict(run["facts"]), "sessions": list(run["sessions"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged ({error!r}); choose another --output") from error
