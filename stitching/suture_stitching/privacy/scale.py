"""How large features are, from noisy counts: where to clip them, without a value that is anybody's."""

from __future__ import annotations

import torch
from torch import Tensor

#: Norms are counted in half octaves, from 2**-20 on.
LOWEST, PER_OCTAVE, BINS = -20, 2, 80
#: A bin with fewer than this part of all patients is left to clipping.
TAIL = 0.05


def counts(norms: Tensor, weights: Tensor) -> Tensor:
    """Return how much of the patients falls into each bin `(BINS,)`, for the norms `(N, P)` of rows of samples.

    `weights` `(N,)` are what a sample counts for; each patient's sum to one, so that nobody counts for more.
    """
    place = ((norms.double().clamp(min=2.0**LOWEST).log2() - LOWEST) * PER_OCTAVE).floor().clamp(0, BINS - 1).long()
    mass = (weights[:, None] / norms.shape[1]).expand_as(norms)
    histogram = torch.zeros(BINS, dtype=torch.float64)
    histogram.index_add_(0, place.flatten(), mass.flatten().double())
    return histogram


def clip_of(noisy: Tensor, patients: float, deviation: float) -> float:
    """Return the upper end of the highest bin that holds more than a tail, or than noise alone would."""
    full = (noisy > max(TAIL * patients, 3 * deviation)).nonzero()
    top = int(full.max()) if len(full) else int(noisy.argmax())
    return float(2.0 ** (LOWEST + (top + 1) / PER_OCTAVE))


def clipped(rows: Tensor, clip: float) -> Tensor:
    """Return `rows` `(..., D)` in units of `clip`, none longer than 1; what is not finite is nothing."""
    rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0).double()
    # Nothing is divided by `clip` alone, which may be so small that a large row would not be finite any more.
    shortened: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp(min=clip)
    return shortened
