"""Reads a checkpoint's weights, all of them."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from draftless.errors import ArtifactError

_SHOWN = 4


def load_weights(**keywords: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, refused where it would fill weights at random.

    Args:
        **keywords: of `from_pretrained`.

    Raises:
        ArtifactError: weights are missing from the checkpoint or have another shape.
        Exception: whatever `transformers` raises.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # its own error names none of them; ours does
        **keywords,
    )
    missing = sorted(map(str, report.get("missing_keys", ())))
    missing += sorted(str(one[0]) for one in report.get("mismatched_keys", ()))
    if missing:
        names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        there = sorted(map(str, report.get("unexpected_keys", ())))
        hint = f"; it holds {', '.join(there[:_SHOWN])} instead" if there else ""
        raise ArtifactError(
            f"{len(missing)} weights are missing from the checkpoint or have another shape: {names}{hint}; "
            "transformers would fill them at random. Save the whole model with save_pretrained"
        )
    model_: PreTrainedModel = model
    return model_
