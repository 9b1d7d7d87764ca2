"""Features of single samples, read for a private fit: one sample at a time, few of their directions, few positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suture_contract.model.graph import Ref
from suture_stitching.data import Split
from suture_stitching.ensemble.merge import Merge
from suture_stitching.ensemble.ood_gate import projection
from suture_stitching.features.moments import channels_second, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import Grid, Points, Reader, rows_of
from suture_stitching.running.tracker import Tracker

#: Numbers of all samples that are held in memory at once.
_MOST = 1 << 27
_SPLITS: tuple[Split, Split] = ("train", "validation")


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


def read_rows(reader: Reader, merge: Merge, wanted: Sequence[WantedRows], tracker: Tracker) -> Rows:
    """Return what is `wanted` of all training and validation samples.

    The models run on one sample at a time, since a network may mix those that it is given together. A row that is not
    finite is zero: an error would tell that there is a sample for which it is so.
    """
    nodes = {index: merge.point(merge.native, one.member, one.point).node for index, one in enumerate(wanted)}
    model = reader.runner.model(merge.graph(tuple(map(Ref, set(nodes.values())))), merge.tensors, reader.shape)
    per_sample = sum(math.prod(one.grid) * _width(one) for one in wanted)
    samples = sum(reader.dataset.n(split) * reader.dataset.patches for split in _SPLITS)
    every = max(1, math.ceil(samples * per_sample / _MOST))

    def look(x: Tensor) -> list[Tensor]:
        each = [dict(reader.runner.stream(model, set(nodes.values()), one)) for one in torch.split(x, 1)]
        values = {node: torch.cat([one[node].float() for one in each]) for node in each[0]}
        return [_reduced(values[nodes[index]], one, every) for index, one in enumerate(wanted)]

    found: list[list[Tensor]] = [[] for _ in wanted]
    whose = []
    for split in _SPLITS:
        for x in reader.batches(split, shuffled=False):
            tracker.tick("solve")
            for part in reader.runner.parts(look, x):
                for own, values in zip(found, part, strict=True):
                    own.append(values.cpu())
        whose.append(reader.dataset.patient_of(split))
    _, patient, samples_of = np.unique(np.concatenate(whose), return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / samples_of[patient.reshape(-1)])
    return Rows([torch.cat(own) for own in found], weights, len(samples_of))


def _width(one: WantedRows) -> int:
    return one.point.shape[0] if one.projection is None else len(one.projection)


def _reduced(feature: Tensor, one: WantedRows, every: int) -> Tensor:
    if one.grid:
        rows = rows_of(feature, one.grid, one.point)[:, ::every]
    else:
        rows = to_grid(channels_second(feature, one.point.channel_axis), ())[:, None]
    if one.projection is not None:
        rows = rows @ one.projection.T.to(rows)
    return torch.where(torch.isfinite(rows).all(2, keepdim=True), rows, 0.0)


def wanted_of(points: Points, target: int, directions: int) -> Mapping[int, WantedRows]:
    """Return by member what a stitch to `target` is solved from: few directions of the others, all of the target."""
    grid = tuple(points[target].shape[1:])
    return {
        member: WantedRows(member, point, grid, None if member == target else projection(point.shape[0], directions))
        for member, point in points.items()
    }
