"""What a checkpoint on the Hugging Face Hub holds of ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from draftless.errors import DraftlessError
from draftless.manifest import MANIFEST_NAME, read_manifest


def hub_folder(name: str, **options: Any) -> Path | None:
    """The local copy of a checkpoint's `draftless.json` and of what that names, if it has one.

    Where the hub cannot be reached, what was fetched before is taken, and a warning says so if that is
    nothing (not in offline mode, which is asked for).

    Args:
        name: of the checkpoint, `owner/model`.
        **options: `revision`, `token`, `cache_dir`, `local_files_only`, as for its weights.

    Raises:
        ArtifactError: its `draftless.json` is damaged or too new.
    """
    try:
        folder = Path(hf_hub_download(name, MANIFEST_NAME, **options)).parent
        manifest = read_manifest(folder)
        methods = manifest.methods.values() if manifest else ()
        stores = [method["store"] for method in methods if "store" in method]
        if stores:
            snapshot_download(name, allow_patterns=[f"{store}/*" for store in stores], **options)
    except DraftlessError:
        raise
    except (RepositoryNotFoundError, RemoteEntryNotFoundError, HFValidationError):
        return None  # a model like any other, or whoever loads it says so better
    except Exception as error:  # noqa: BLE001 - whatever transports raise
        if not (is_offline_mode() or options.get("local_files_only")):
            warnings.warn(
                f"whether {name} has a {MANIFEST_NAME} is not known ({error}); it is used without what "
                "it was trained for",
                stacklevel=4,
            )
        return None
    return folder
