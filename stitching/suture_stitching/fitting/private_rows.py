"""Features of single samples, read for a private fit: one sample at a time, few of their directions, few positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suture_stitching.ensemble.merge import Merge
from suture_stitching.ensemble.ood_gate import projection
from suture_stitching.features.moments import channels_second, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import SPLITS, Grid, Points, rows_of
from suture_stitching.running.feature_pass import FeaturePass

#: Numbers of all samples that are held in memory at once.
_MOST = 1 << 27


@dataclass(frozen=True)
class WantedRows:
    """One thing to read of each sample: a member's features at `point`, brought to `grid`, in `projection` `(k, C)`."""

    member: int
    point: StitchPoint
    grid: Grid
    projection: Tensor | None


@dataclass(frozen=True)
class Rows:
    """What was read, `(N, P, k)` float32 each, and what a sample counts for `(N,)`: a patient's samples together 1."""

    values: Sequence[Tensor]
    weights: Tensor
    patients: int


def read_rows(passes: FeaturePass, merge: Merge, wanted: Sequence[WantedRows]) -> Rows:
    """Return what is `wanted` of all training and validation samples.

    The models run on one sample at a time, since a network may mix those that it is given together. A row that is not
    finite is zero: an error would tell that there is a sample for which it is so.
    """
    nodes = {index: merge.point(merge.native, rows.member, rows.point).node for index, rows in enumerate(wanted)}
    model = passes.model_of(merge, set(nodes.values()))
    per_sample = sum(math.prod(rows.grid) * _width(rows) for rows in wanted)
    samples = sum(passes.dataset.n(split) * passes.dataset.patches for split in SPLITS)
    every = max(1, math.ceil(samples * per_sample / _MOST))

    def look(x: Tensor) -> list[Tensor]:
        each = [dict(passes.runner.stream(model, set(nodes.values()), sample)) for sample in torch.split(x, 1)]
        values = {node: torch.cat([sample[node].float() for sample in each]) for node in each[0]}
        return [_reduced(values[nodes[index]], rows, every) for index, rows in enumerate(wanted)]

    read: list[list[Tensor]] = [[] for _ in wanted]
    whose = []
    for split in SPLITS:
        for x, _ in passes.shuffled(split, None):
            passes.tracker.tick("solve")
            for part in passes.runner.parts(look, x):
                for parts, values in zip(read, part, strict=True):
                    parts.append(values.cpu())
        whose.append(passes.dataset.patient_of(split))
    _, patient, samples_of = np.unique(np.concatenate(whose), return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / samples_of[patient.reshape(-1)])
    return Rows([torch.cat(parts) for parts in read], weights, len(samples_of))


def _width(wanted: WantedRows) -> int:
    return wanted.point.shape[0] if wanted.projection is None else len(wanted.projection)


def _reduced(feature: Tensor, wanted: WantedRows, every: int) -> Tensor:
    if wanted.grid:
        rows = rows_of(feature, wanted.grid, wanted.point)[:, ::every]
    else:
        rows = to_grid(channels_second(feature, wanted.point.channel_axis), ())[:, None]
    if wanted.projection is not None:
        rows = rows @ wanted.projection.T.to(rows)
    return torch.where(torch.isfinite(rows).all(2, keepdim=True), rows, 0.0)


def wanted_of(points: Points, target: int, directions: int) -> Mapping[int, WantedRows]:
    """Return by member what a stitch to `target` is solved from: few directions of the others, all of the target."""
    grid = tuple(points[target].shape[1:])
    return {
        member: WantedRows(member, point, grid, None if member == target else projection(point.shape[0], directions))
        for member, point in points.items()
    }
