"""A stitch in closed form: what it is, how well it does, and what its refinement starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from suture_stitching.ensemble.merge import Join
from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.carriers import Screen
from suture_stitching.fitting.reading import Grid, Pair, Points, columns
from suture_stitching.fitting.solve import Solution, Source
from suture_stitching.fitting.solve_rows import SourceOfRows

#: Deviation of the noise on the features that are mixed while a stitch is refined, in units of their own.
NOISE = 0.7


@dataclass(frozen=True)
class Spread:
    """Mean `(in,)` of a stitch's source features, and the typical deviations of source and target features.

    One deviation for all channels: dividing by each channel's own would blow up those that hardly vary on this data
    and mean something on others'.
    """

    mean_in: Tensor
    deviation_in: float
    deviation_out: float
    #: What is kept of source and target features (see `carriers`): training does not leave it either.
    keep_in: Screen
    keep_out: Screen


@dataclass(frozen=True)
class Solved:
    """`weight` `(out, in)` and `bias` `(out,)`, float32 on the CPU; `r2` is the explained variance on held-out rows.

    `start` are weight and bias of the closed form for features with `NOISE`, from which refinement starts; none where
    nothing is refined.
    """

    weight: Tensor
    bias: Tensor
    r2: float
    start: tuple[Tensor, Tensor] | None
    spread: Spread


class FittedStitch:
    """A stitch by its `name`, with a weight of this `shape` `(out, in)`: solved for when it is first asked for.

    Of the closed forms that a fit could have, it offers what all parties have the time to evaluate.
    """

    def __init__(self, name: str, shape: tuple[int, int], solve: Callable[[], Solved]) -> None:
        self.name, self.shape = name, shape
        self._solve: Callable[[], Solved] | None = solve

    @cached_property
    def solved(self) -> Solved:
        """The stitch itself, solved for once."""
        assert self._solve is not None, "what it is solved from is needed no more"
        solved, self._solve = self._solve(), None
        return solved

    @property
    def names(self) -> tuple[str, str]:
        """Return what weight and bias are called among the tensors of a fit."""
        return f"{self.name}.weight", f"{self.name}.bias"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return weight and bias by their names."""
        return dict(zip(self.names, (self.solved.weight, self.solved.bias), strict=True))

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Return tensors without memory, as large as weight and bias, by their names."""
        sizes = (self.shape, self.shape[:1])
        return {name: torch.empty(size, device="meta") for name, size in zip(self.names, sizes, strict=True)}


@dataclass(frozen=True)
class FittedMatch:
    """A stitch point per member, and the stitches between them by (source, target)."""

    points: Points
    stitches: Mapping[tuple[int, int], FittedStitch]

    def join(self, alpha: float) -> Join:
        """Return the match, ready to build, mixed with this weight."""
        return Join(self.points, alpha, {pair: stitch.names for pair, stitch in self.stitches.items()})


def solve_stitch(
    name: str,
    pair: Callable[[], Pair],
    source: slice,
    target: slice,
    keep: Callable[[int], Screen],
    members: tuple[int, int],
    *,
    start: bool,
) -> FittedStitch:
    """Return the stitch from the features `source` to those of `target`, by their columns in the moments of `pair`.

    `keep` gives for each of both `members` the map that leaves what enough patients carry: it is solved for what is
    kept of the source, and given all of it. `start` says whether it may be refined.
    """
    shape = (target.stop - target.start, source.stop - source.start)

    def solve() -> Solved:
        (train, held_out), keep_in, keep_out = pair(), keep(members[0]), keep(members[1])
        features = source_of(train, source, held_out)

        def tensors(solution: Solution) -> tuple[Tensor, Tensor]:
            return keep_in.before(solution.weight).float().cpu(), solution.bias.float().cpu()

        solution = features.to(target)
        robust = tensors(features.to(target, (NOISE**2,))) if start else None
        variance = train.variances.clamp(min=0)
        deviations = _deviation(variance[source]), _deviation(variance[target])
        spread = Spread(train.mean[source], *deviations, keep_in, keep_out)
        return Solved(*tensors(solution), solution.r2, robust, spread)

    return FittedStitch(name, shape, solve)


def source_of(train: Moments | FewRows, source: slice, held_out: Moments | FewRows) -> Source | SourceOfRows:
    """Return the features in the columns `source`, ready to start stitches from."""
    if isinstance(train, FewRows) and isinstance(held_out, FewRows):
        return SourceOfRows(train, source, held_out)
    return Source(train.dense(), source, held_out.dense())


def solve_match(
    name: str,
    points: Points,
    pair: Callable[[Grid], Pair],
    keep: Callable[[int], Screen],
    *,
    start: bool,
) -> FittedMatch:
    """Return the stitches between all members at `points`, from the moments on each target's grid."""
    stitches, side = {}, columns(points)

    for source in points:
        for target in points:
            if source != target:
                stitches[source, target] = solve_stitch(
                    f"{name}.{source}_{target}",
                    functools.partial(pair, points[target].shape[1:]),
                    side[source],
                    side[target],
                    keep,
                    (source, target),
                    start=start,
                )
    return FittedMatch(points, stitches)


def grids_of(points: Mapping[int, StitchPoint]) -> set[Grid]:
    """Return the sizes of the maps at a match: each stitch is solved for on that of its target."""
    return {point.shape[1:] for point in points.values()}


def _deviation(variances: Tensor) -> float:
    """Return the typical deviation of features with these variances; 1 if all are constant."""
    mean = float(variances.mean())
    return mean**0.5 if mean > 0 else 1.0
