"""How large features are, from noisy counts: where to clip them, without a value that is anybody's.

Patients lie in a few bins beside each other, and noise in all. So far from patients some bin stands out by chance, and
the highest bin that does is mostly such a one. What counts is a run of bins that noise does not explain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Norms are counted in half octaves, from 2**-20 on.
LOWEST, PER_OCTAVE, BINS = -20, 2, 80
#: A bin with fewer than this part of all patients is left to clipping.
TAIL = 0.05
#: What a bin costs a run, and the least evidence of a run: among 80 bins noise has as much once in a hundred times.
_BIN, _RUN = 2.0, 5.0
#: Deviations that noise does not reach in all bins of a fit.
_SURE = 5.0


def counts(norms: Tensor, weights: Tensor) -> Tensor:
    """Return how much of the patients falls into each bin `(BINS,)`, for the norms `(N, P)` of rows of samples.

    `weights` `(N,)` are what a sample counts for; each patient's sum to one, so that nobody counts for more.
    """
    place = ((norms.double().clamp(min=2.0**LOWEST).log2() - LOWEST) * PER_OCTAVE).floor().clamp(0, BINS - 1).long()
    mass = (weights[:, None] / norms.shape[1]).expand_as(norms)
    histogram = torch.zeros(BINS, dtype=torch.float64)
    histogram.index_add_(0, place.flatten(), mass.flatten().double())
    return histogram


def run_of(noisy: Tensor, deviation: float) -> slice | None:
    """Return the run of bins that noise of this deviation explains least; None where it may explain all of `noisy`.

    A bin's evidence is by how much counts explain it better than noise alone does, in logarithms of likelihoods, less
    what each bin more costs. The run of largest sum is that of Kadane's algorithm.
    """
    evidence = (noisy.clamp(min=0) / deviation).square() / 2 - _BIN
    most, run = _RUN, None
    total, start = 0.0, 0
    for index, more in enumerate(evidence.tolist()):
        if total <= 0:
            total, start = 0.0, index
        total += more
        if total > most:
            most, run = total, slice(start, index + 1)
    return run


def clip_of(noisy: Tensor, patients: float, deviation: float) -> float:
    """Return the upper end of the highest bin that holds more than a tail: in a run, or more than noise ever does."""
    # Features of nothing need no clip.
    some = torch.cat([noisy.new_full((1,), -math.inf), noisy[1:]])
    run = run_of(some, deviation)
    near = torch.zeros(len(some), dtype=torch.bool)
    if run is not None:
        near[run] = True
    full = ((some > TAIL * patients) & (near | (some > _SURE * deviation))).nonzero()
    top = int(full.max()) if len(full) else run.stop - 1 if run is not None else int(some.argmax())
    return float(2.0 ** (LOWEST + (top + 1) / PER_OCTAVE))


def clipped(rows: Tensor, clip: float) -> Tensor:
    """Return `rows` `(..., D)` in units of `clip`, none longer than 1; what is not finite is nothing."""
    rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0).double()
    # Nothing is divided by `clip` alone, which may be so small that a large row would not be finite any more.
    shortened: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp(min=clip)
    return shortened
