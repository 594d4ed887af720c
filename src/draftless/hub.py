"""What a checkpoint on the Hugging Face Hub holds of ours."""

from __future__ import annotations

import warnings
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

from draftless.manifest import MANIFEST_NAME, read_manifest


def hub_folder(name: str) -> Path | None:
    """The local copy of a checkpoint with its `draftless.json` and what that names, if there is one.

    Args:
        name: of the checkpoint, `owner/model`.

    Raises:
        ArtifactError: its `draftless.json` is damaged or too new.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=[MANIFEST_NAME]))
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        stores = [method["store"] for method in manifest.methods.values() if "store" in method]
        if stores:
            snapshot_download(name, allow_patterns=[f"{store}/*" for store in stores])
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError):
        return None  # whoever loads the model says so better
    except OSError as error:
        warnings.warn(
            f"whether {name} has a {MANIFEST_NAME} is not known ({error}); it is used without what it "
            "was trained for",
            stacklevel=3,
        )
        return None
    return folder
