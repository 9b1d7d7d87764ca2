"""Which features enough patients carry: what few of them make up takes no part in a fit.

A feature that fires for one patient only comes about by accident, in a rare class say, and a regression on it, or of
it, is that patient. So is a direction between features that hold for all but one patient. What such features and
directions say is taken out of the moments, on both sides of a stitch. That keeps accidents in, and simple attacks; who
builds a network to carry patients out can spread them over directions that look full, and only noise keeps these in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments
from suture_stitching.running.accumulator import Placed

#: Patients are counted in so many groups at most: memory does not grow with their number, and nobody is counted twice.
GROUPS = 1024
#: A feature is carried by the fewest patients who make up this part of how much it varies.
HELD = 0.9
#: Directions that vary less than this part of the largest are rounding.
_ROUNDING = 1e-9
#: Numbers that are rounded at once, and how many binary digits a float32 has.
_PART, _SIGNIFICANT = 1 << 15, 24


@dataclass(frozen=True)
class Screen:
    """The map `diag(full) - across @ along.T` `(C, C)` that leaves of a member's features what enough patients carry.

    `full` `(C,)` is one where a feature stays, `across` and `along` `(C, G)` are the directions that are taken out of
    those that stay: few, so that nothing is multiplied by a whole matrix. All are float64.
    """

    full: Tensor
    across: Tensor
    along: Tensor

    @classmethod
    def everything(cls, width: int) -> Screen:
        """Return the map that leaves all of so many features."""
        none = torch.zeros(width, 0, dtype=torch.float64)
        return cls(torch.ones(width, dtype=torch.float64), none, none)

    @property
    def whole(self) -> bool:
        """Whether nothing is taken out."""
        return not self.across.shape[1] and bool(self.full.all())

    def of(self, features: Tensor) -> Tensor:
        """Return the map times `features` `(C, N)`."""
        if self.whole:
            return features
        kept = self.full[:, None].to(features) * features
        if not self.across.shape[1]:
            return kept
        return kept - self.across.to(features) @ (self.along.T.to(features) @ features)

    def before(self, weight: Tensor) -> Tensor:
        """Return `weight` `(O, C)` times the map."""
        if self.whole:
            return weight
        kept = weight * self.full.to(weight)
        if not self.across.shape[1]:
            return kept
        return kept - (weight @ self.across.to(weight)) @ self.along.T.to(weight)

    def to(self, like: Tensor) -> Screen:
        """Return the same map where `like` is, in its type."""
        return Screen(self.full.to(like), self.across.to(like), self.along.to(like))

    def dense(self) -> Tensor:
        """Return the whole matrix."""
        return torch.diag(self.full) - self.across @ self.along.T


def groups_of(patients: NDArray[np.int64]) -> Tensor:
    """Return the group `(N,)` of each sample, by whose it is."""
    return torch.from_numpy(np.unique(patients, return_inverse=True)[1].reshape(-1) % GROUPS)


def tallied(rows: Tensor, groups: Tensor) -> Placed:
    """Return what counts for its group `(N,)` of each sample: 1, its features and their squares, `(N, 1 + 2 D)`.

    `rows` are `(N, P, D)`; each sample counts as one, by the means over its positions.
    """
    # From any one value of each feature on, which keeps constants constant in float32.
    start = rows[0, 0]
    step = rows - start
    mean, square, shift = step.mean(1).double(), step.square_().mean(1).double(), start.double()
    each = torch.cat([mean.new_ones(len(rows), 1), mean + shift, square + 2 * shift * mean + shift.square()], 1)
    return Placed(groups.to(rows.device), each, GROUPS)


def kept(tally: Tensor, columns: Mapping[int, slice], least: int) -> dict[int, Screen]:
    """Return for each member the map that leaves of its features what at least `least` patients carry."""
    if least <= 1:
        return {m: Screen.everything(column.stop - column.start) for m, column in columns.items()}
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


def kept_of_rows(train: FewRows, groups: Tensor, least: int) -> tuple[Screen, FewRows]:
    """Return what `kept` does, from few rows of one member, and the rows of what is kept, whose directions are known.

    `groups` `(N,)` are those of the samples, each of which has equally many rows, one after the other. Directions are
    those of the features as they are, along which a stitch is solved for: one decomposition serves both.
    """
    width, everything = len(train.mean), slice(0, len(train.mean))
    if least <= 1:
        return Screen.everything(width), train
    whose = groups.to(train.rows.device).repeat_interleave(len(train.rows) // max(len(groups), 1))
    energies = _per_group(train.rows.square(), whose)
    # What a constant leaves over when it is squared and rounded.
    varies = energies.mean(0).double() > 1e-12 * train.mean.square()
    full = (_carried(energies, least) & varies).double()
    rows = train.without(full)
    few = ~_carried(_per_group(rows.directions(everything).vectors, whose).square(), least)
    along = rows.along(everything, few).cpu()
    keep = Screen(full.cpu(), along, along)
    if not bool(few.any()):
        return keep, rows
    left = screened_rows(rows, {0: keep}, {0: everything})
    left.know(everything, rows.lessened(everything, few))
    return keep, left


def screened_rows(moments: FewRows, keep: Mapping[int, Screen], columns: Mapping[int, slice]) -> FewRows:
    """Return what `screened` does of few rows."""
    parts = {member: column for member, column in columns.items() if not keep[member].whole}
    if not parts:
        return moments
    mean, rows = moments.mean.clone(), moments.rows.clone()
    for member, column in parts.items():
        mean[column] = keep[member].of(mean[column, None])[:, 0]
        rows[:, column] = keep[member].of(rows[:, column].T).T
    return FewRows(moments.n, mean, rows)


def _per_group(values: Tensor, whose: Tensor) -> Tensor:
    """Return the mean of the rows `(R, D)` of each group that there is, `(G, D)`."""
    _, place, count = torch.unique(whose, return_inverse=True, return_counts=True)
    if len(count) == len(whose):
        return values
    total = values.new_zeros(len(count), values.shape[1])
    return total.index_add_(0, place, values).div_(count[:, None])


def _carried(energies: Tensor, least: int) -> Tensor:
    """Whether `carried_by` is at least `least` for each column of `energies` `(N, D)`: from the largest alone."""
    if len(energies) < least:
        return torch.zeros(energies.shape[1], dtype=torch.bool, device=energies.device)
    # Most columns have no value so large that as many of it could hold what is asked for.
    enough = HELD * energies.sum(0)
    many: Tensor = (least - 1) * energies.amax(0) < enough
    rest = (~many).nonzero()[:, 0]
    many[rest] = energies[:, rest].T.contiguous().topk(least - 1, 1).values.sum(1) < enough[rest]
    return many


def screened(moments: Moments, keep: Mapping[int, Screen], columns: Mapping[int, slice]) -> Moments:
    """Return the moments of the features that are kept, in their old places."""
    parts = {member: column for member, column in columns.items() if not keep[member].whole}
    if not parts:
        return moments
    mean, scatter = moments.mean.clone(), moments.scatter.clone()
    for member, column in parts.items():
        mean[column] = keep[member].of(mean[column, None])[:, 0]
        scatter[column] = keep[member].of(scatter[column])
        scatter[:, column] = keep[member].of(scatter[:, column].T).T
    return Moments(moments.n, mean, scatter)


def rounded(tensor: Tensor, patients: int) -> Tensor:
    """Return float32 numbers with as many binary digits as an estimate from so many patients deserves.

    It is uncertain by about one part in the root of their number; a few digits more keep sums of many from suffering.
    """
    digits = 4 + math.ceil(math.log2(max(patients, 1)) / 2)
    left = _SIGNIFICANT - digits
    result = tensor.clone(memory_format=torch.contiguous_format)
    if left <= 0:
        return result
    # In parts that stay in the processor's cache: as integers, of which the last digits go, the half of them to even.
    for part in torch.split(result.view(-1).view(torch.int32), _PART):
        odd = (part >> left) & 1
        part += odd.add_((1 << (left - 1)) - 1)
        part &= -(1 << left)
    return result


def carried_by(energies: Tensor) -> Tensor:
    """Return by how many patients each column of `energies` `(N, D)` is carried; none where it is constant."""
    ordered = energies.sort(0, descending=True).values
    total = ordered.sum(0)
    count = (ordered.cumsum(0) < HELD * total).sum(0) + 1
    return torch.where(total > 0, count, 0)


def _kept(energies: Tensor, deviations: Tensor, middle: Tensor, least: int) -> Screen:
    width = len(middle)
    full = carried_by(energies) >= least
    # What a constant leaves over when it is squared and rounded.
    full &= energies.mean(0) > 1e-12 * middle.square()
    chosen = full.nonzero()[:, 0]
    if not len(chosen):
        return Screen(full.double(), *(torch.zeros(width, 0, dtype=torch.float64) for _ in range(2)))
    scale = deviations[:, chosen].square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    unit = deviations[:, chosen] / scale
    values, vectors = _directions(unit)
    few = carried_by((unit @ vectors).square()) < least
    gone = vectors[:, few & (values > _ROUNDING * values[-1])]
    across, along = (torch.zeros(width, gone.shape[1], dtype=torch.float64) for _ in range(2))
    across[chosen], along[chosen] = scale[:, None] * gone, gone / scale[:, None]
    return Screen(full.double(), across, along)


def _directions(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which directions, `(C, K)`, patients' `(N, C)` features vary, and how much: the largest last."""
    patients, width = unit.shape
    if patients >= width:
        values, vectors = torch.linalg.eigh(unit.T @ unit / patients)
        return values, vectors
    # There are no more directions than patients, and theirs are found in products of patients.
    values, each = torch.linalg.eigh(unit @ unit.T / patients)
    some = values > _ROUNDING * values[-1]
    return values[some], unit.T @ each[:, some] / (patients * values[some]).sqrt()
