"""Predicting a volume of any size by a model of one size: a window slides over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor

#: Windows that are predicted at once.
_AT_ONCE = 4
_OVERLAP = 0.25
#: Of outputs for a whole volume that grow side by side.
_HELD_BYTES = 1 << 30


def outputs_at_once(spatial: Sequence[int], channels: int) -> int:
    """Return how many outputs `(1, channels, *spatial)` to predict at once: as many as 1 GiB holds, one at least.

    What they share runs again for the next ones, so that time is given for memory.
    """
    # In float32, and beside each output the sum of its windows' weights.
    return max(1, _HELD_BYTES // (4 * (channels + 1) * prod(spatial)))


def predict(model: Callable[[Tensor], Sequence[Tensor]], x: Tensor, window: Sequence[int]) -> Sequence[Tensor]:
    """Return the model's outputs `(N, k, *spatial)` for `x` `(N, C, *spatial)`, predicted in windows.

    Neighbouring windows overlap by a quarter; where they do, predictions are averaged with Gaussian weights, since they
    are best in a window's middle (Isensee et al., nnU-Net, 2021). A smaller `x` is padded with its smallest value.
    """
    from monai.inferers import sliding_window_inference

    outputs: Tensor | tuple[Tensor, ...] = sliding_window_inference(
        x,
        tuple(window),
        _AT_ONCE,
        lambda part: tuple(model(part)),
        overlap=_OVERLAP,
        mode="gaussian",
        cval=float(x.min()),
    )
    return outputs if isinstance(outputs, tuple) else (outputs,)
