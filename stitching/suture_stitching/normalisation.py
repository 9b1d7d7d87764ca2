"""What a caller does to samples before a network: `suture.json` names mean and deviation per channel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return samples `(N, C, *spatial)` as `(x - mean) / std`, one number per channel each."""
    shape = (-1, *[1] * (x.dim() - 2))
    return (x - x.new_tensor(mean).reshape(shape)) / x.new_tensor(std).reshape(shape)


__all__ = ["normalised"]
