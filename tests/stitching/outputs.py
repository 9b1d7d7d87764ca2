"""The outputs of networks, whatever they are nested in."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def flat(output: Any) -> list[Tensor]:
    """Return the tensors of an output in order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in flat(item)]
