"""What others may do to a loaded model between two requests."""

from __future__ import annotations

from typing import Any

import torch

from draftless.errors import CapabilityError


class Watch:
    """Remembers a model as it was loaded.

    Args:
        model: with the attention that it keeps.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._form = _form_of(model)
        self._weights = _weights_of(model)

    def check(self) -> None:
        """Refuse a model that would now give something else than what was tested.

        Raises:
            CapabilityError: it is in training mode, or has another attention, dtype or device.
        """
        name = type(self._model).__name__
        if any(module.training for module in self._model.modules()):
            # Switching it for those who train it would end their dropout.
            raise CapabilityError(
                f"{name} is in training mode, in which dropout makes every pass "
                "random; call model.eval() before generating (and model.train() afterwards)"
            )
        if (form := _form_of(self._model)) != self._form:
            raise CapabilityError(
                f"{name} has {form} now, and was loaded with {self._form}; load it again after such a change"
            )

    def has_new_weights(self) -> bool:
        """Whether a weight was written or replaced since this was last asked."""
        before, self._weights = self._weights, _weights_of(self._model)
        return before != self._weights


def _form_of(model: Any) -> str:
    first = next(model.parameters())
    return f"{model.config._attn_implementation} attention in {first.dtype} on {first.device}"


def _weights_of(model: Any) -> tuple[tuple[int, int], ...]:
    return tuple((one.data_ptr(), _version(one)) for one in model.parameters())


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
