"""Which features enough patients carry: what few of them make up takes no part in a fit.

A feature that fires for one patient only comes about by accident, in a rare class say, and a regression on it, or of
it, is that patient. So is a direction between features that hold for all but one patient. What such features and
directions say is taken out of the moments, on both sides of a stitch. That keeps accidents in, and simple attacks; who
builds a network to carry patients out can spread them over directions that look full, and only noise keeps these in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_stitching.features.moments import Moments

#: Patients are counted in so many groups at most: memory does not grow with their number, and nobody is counted twice.
GROUPS = 1024
#: A feature is carried by the fewest patients who make up this part of how much it varies.
HELD = 0.9
#: Directions that vary less than this part of the largest are rounding.
_ROUNDING = 1e-9


def groups_of(patients: NDArray[np.int64]) -> Tensor:
    """Return the group `(N,)` of each sample, by whose it is."""
    return torch.from_numpy(np.unique(patients, return_inverse=True)[1].reshape(-1) % GROUPS)


def tallied(rows: Tensor, groups: Tensor) -> Tensor:
    """Return per group the number of samples, and of each feature the sum and that of squares: `(GROUPS, 1 + 2 D)`.

    `rows` are `(N, P, D)`; each sample counts as one, by the means over its positions.
    """
    # From any one value of each feature on, which keeps constants constant in float32.
    start = rows[0, 0]
    step = rows - start
    mean, square, shift = step.mean(1).double(), step.square_().mean(1).double(), start.double()
    each = torch.cat([mean.new_ones(len(rows), 1), mean + shift, square + 2 * shift * mean + shift.square()], 1)
    return torch.zeros(GROUPS, each.shape[1], dtype=torch.float64, device=rows.device).index_add_(
        0, groups.to(rows.device), each
    )


def kept(tally: Tensor, columns: Mapping[int, slice], least: int) -> dict[int, Tensor]:
    """Return for each member the map `(C, C)` that leaves of its features what at least `least` patients carry."""
    if least <= 1:
        return {m: torch.eye(column.stop - column.start, dtype=torch.float64) for m, column in columns.items()}
    tally = tally[tally[:, 0] > 0].cpu()
    count, (sums, squares) = tally[:, :1], tally[:, 1:].chunk(2, 1)
    middle = (sums / count).mean(0)
    # Per patient, the mean square of the deviation, and the mean deviation.
    energies = (squares / count - 2 * middle * sums / count + middle.square()).clamp(min=0)
    deviations = sums / count - middle
    return {
        member: _kept(energies[:, column], deviations[:, column], middle[column], least)
        for member, column in columns.items()
    }


def screened(moments: Moments, keep: Mapping[int, Tensor], columns: Mapping[int, slice]) -> Moments:
    """Return the moments of the features that are kept, in their old places."""
    whole = torch.zeros_like(moments.scatter)
    for member, column in columns.items():
        whole[column, column] = keep[member].to(whole)
    return Moments(moments.n, whole @ moments.mean, whole @ moments.scatter @ whole.T)


def rounded(tensor: Tensor, patients: int) -> Tensor:
    """Return float32 numbers with as many binary digits as an estimate from so many patients deserves.

    It is uncertain by about one part in the root of their number; a few digits more keep sums of many from suffering.
    """
    digits = 4 + math.ceil(math.log2(max(patients, 1)) / 2)
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**digits).round() / 2**digits, exponent)


def carried_by(energies: Tensor) -> Tensor:
    """Return by how many patients each column of `energies` `(N, D)` is carried; none where it is constant."""
    ordered = energies.sort(0, descending=True).values
    total = ordered.sum(0)
    count = (ordered.cumsum(0) < HELD * total).sum(0) + 1
    return torch.where(total > 0, count, 0)


def _kept(energies: Tensor, deviations: Tensor, middle: Tensor, least: int) -> Tensor:
    width = len(middle)
    full = carried_by(energies) >= least
    # What a constant leaves over when it is squared and rounded.
    full &= energies.mean(0) > 1e-12 * middle.square()
    keep = torch.zeros(width, width, dtype=torch.float64)
    chosen = full.nonzero()[:, 0]
    if not len(chosen):
        return keep
    scale = deviations[:, chosen].square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    unit = deviations[:, chosen] / scale
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    few = carried_by((unit @ vectors).square()) < least
    gone = vectors[:, few & (values > _ROUNDING * values[-1])]
    within = torch.eye(len(chosen), dtype=torch.float64) - gone @ gone.T
    keep[chosen[:, None], chosen[None]] = scale[:, None] * within / scale[None]
    return keep
