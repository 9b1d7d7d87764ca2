"""One pass through all members over the fit data: the moments of all matches, for stitches and gates alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from suture_stitching.data import Dataset, Split
from suture_stitching.members import Member, batches
from suture_stitching.merge import Merge, Values
from suture_stitching.moments import Moments, channels_second, rows
from suture_stitching.points import StitchPoint
from suture_stitching.portable.graph import Ref
from suture_stitching.portable.runtime import PortableModel

#: Positions of a map that are counted per sample: neighbours say much the same.
POSITIONS = 256

Points: TypeAlias = Mapping[int, StitchPoint]
Grid: TypeAlias = tuple[int, ...]
_SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True)
class Reading:
    """Moments by match and grid, of the features of all matched members side by side; of both splits.

    `pooled` are, by match, the training split's moments of the features averaged over positions: a row is a sample.
    """

    groups: Sequence[Points]
    moments: Mapping[tuple[int, Grid], tuple[Moments, Moments]]
    pooled: Sequence[Moments]

    def pair(self, index: int, grid: Grid) -> tuple[Moments, Moments]:
        """Return the moments of a match on a grid, of `train` and `validation`."""
        return self.moments[index, grid]

    def columns(self, index: int) -> dict[int, slice]:
        """Return where each member's features stand in a match's moments."""
        found, start = {}, 0
        for member, point in self.groups[index].items():
            found[member] = slice(start, start + point.shape[0])
            start += point.shape[0]
        return found

    def stitched(
        self,
        merge: Merge,
        values: Sequence[Values],
        points: Points,
        members: Sequence[Member],
        dataset: Dataset,
        device: str | torch.device,
        tick: Callable[[str], None],
    ) -> dict[tuple[int, int], tuple[Moments, Moments]]:
        """Return moments of stitched source features beside native target features, by (source, target).

        `values` are the members' values behind earlier stitches; moments are on the target's grid, of both splits.
        """
        refs = {member: merge.point(values, member, point) for member, point in points.items()}
        native = {member: merge.point(merge.native, member, point) for member, point in points.items()}
        model = _model(merge, [*refs.values(), *native.values()], device)
        totals: dict[tuple[int, int], list[Moments]] = {}
        for number, split in enumerate(_SPLITS):
            for x, _ in batches(members, dataset, split, device):
                tick("double")
                with torch.no_grad():
                    features = model(x)
                ours = dict(zip(points, features[: len(points)], strict=True))
                theirs = dict(zip(points, features[len(points) :], strict=True))
                for source in points:
                    for target in points:
                        if source != target:
                            grid = points[target].shape[1:]
                            side = [
                                _rows(ours[source], grid, points[source]),
                                _rows(theirs[target], grid, points[target]),
                            ]
                            found = Moments.of(torch.cat(side, 1))
                            pair = totals.setdefault((source, target), [_none(found), _none(found)])
                            pair[number] = pair[number] + found
        return {pair: (train, held_out) for pair, (train, held_out) in totals.items()}


def read(
    members: Sequence[Member],
    merge: Merge,
    groups: Sequence[Points],
    dataset: Dataset,
    device: str | torch.device,
    tick: Callable[[str], None],
) -> Reading:
    """Return the moments of `groups` over both splits; `tick` is called before every batch."""
    refs = [merge.point(merge.native, member, point) for points in groups for member, point in points.items()]
    model = _model(merge, refs, device)
    totals: dict[tuple[int, Grid], list[Moments]] = {}
    pooled: list[Moments | None] = [None] * len(groups)
    for number, split in enumerate(_SPLITS):
        for x, _ in batches(members, dataset, split, device):
            tick("solve")
            with torch.no_grad():
                features = iter(model(x))
            for index, points in enumerate(groups):
                own = [(point, next(features)) for point in points.values()]
                for grid in {point.shape[1:] for point in points.values()}:
                    side = torch.cat([_rows(feature, grid, point) for point, feature in own], 1)
                    found = Moments.of(side)
                    pair = totals.setdefault((index, grid), [_none(found), _none(found)])
                    pair[number] = pair[number] + found
                if split == "train":
                    found = Moments.of(torch.cat([_mean(feature, point) for point, feature in own], 1))
                    before = pooled[index]
                    pooled[index] = found if before is None else before + found
    return Reading(
        groups, {key: (train, held_out) for key, (train, held_out) in totals.items()}, [one for one in pooled if one]
    )


def _model(merge: Merge, refs: Sequence[Ref], device: str | torch.device) -> PortableModel:
    return PortableModel(merge.graph(tuple(refs)), merge.tensors).to(device)


def _rows(feature: Tensor, grid: Grid, point: StitchPoint) -> Tensor:
    """Return the rows of a feature map, at no more than `POSITIONS` evenly spread positions per sample."""
    found = rows(feature.float(), grid, point.channel_axis)
    positions = torch.Size(grid).numel()
    if positions <= POSITIONS:
        return found
    kept = torch.linspace(0, positions - 1, POSITIONS, device=found.device).long()
    return found.reshape(-1, positions, found.shape[1])[:, kept].flatten(0, 1)


def _mean(feature: Tensor, point: StitchPoint) -> Tensor:
    """Return a feature map's mean over positions, `(N, C)`."""
    found = channels_second(feature.float(), point.channel_axis)
    return found.flatten(2).mean(2) if found.dim() > 2 else found


def _none(like: Moments) -> Moments:
    return Moments.nothing(len(like.mean), like.mean.device)
