"""A stitch in closed form: what it is, how well it does, and what its refinement starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from suture_stitching.ensemble.merge import Join
from suture_stitching.features.moments import Moments
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.carriers import Screen
from suture_stitching.fitting.reading import Grid, Points, columns
from suture_stitching.fitting.solve import Solution, Source
from suture_stitching.running.tracker import Tracker

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
class FittedStitch:
    """`weight` `(out, in)` and `bias` `(out,)`, float32 on the CPU; `r2` is the explained variance on held-out rows.

    `start` are weight and bias of the closed form for features with `NOISE`, from which refinement starts.
    """

    name: str
    weight: Tensor
    bias: Tensor
    r2: float
    start: tuple[Tensor, Tensor]
    spread: Spread

    @property
    def names(self) -> tuple[str, str]:
        """Return what weight and bias are called among the tensors of a fit."""
        return f"{self.name}.weight", f"{self.name}.bias"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return weight and bias by their names."""
        return dict(zip(self.names, (self.weight, self.bias), strict=True))


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
    train: Moments,
    held_out: Moments,
    source: slice,
    target: slice,
    keep: tuple[Screen, Screen],
) -> FittedStitch:
    """Return the stitch from the features `source` to those of `target`, by their columns in the moments.

    `keep` are the maps that leave what enough patients carry of both: it is solved for what is kept of the source, and
    given all of it.
    """
    features = Source(train, source, held_out)

    def tensors(solution: Solution) -> tuple[Tensor, Tensor]:
        return keep[0].before(solution.weight).float().cpu(), solution.bias.float().cpu()

    solution, robust = features.to(target), features.to(target, (NOISE**2,))
    variance = train.covariance.diagonal().clamp(min=0)
    spread = Spread(train.mean[source], _deviation(variance[source]), _deviation(variance[target]), *keep)
    return FittedStitch(name, *tensors(solution), solution.r2, tensors(robust), spread)


def solve_match(
    name: str,
    points: Points,
    moments: Mapping[Grid, tuple[Moments, Moments]],
    keep: Mapping[int, Screen],
    tracker: Tracker,
) -> FittedMatch:
    """Return the stitches between all members at `points`, from the moments on each target's grid."""
    stitches, side = {}, columns(points)
    for source in points:
        for target in points:
            if source != target:
                tracker.tick("stitch")
                train, held_out = moments[points[target].shape[1:]]
                stitches[source, target] = solve_stitch(
                    f"{name}.{source}_{target}",
                    train,
                    held_out,
                    side[source],
                    side[target],
                    (keep[source], keep[target]),
                )
    return FittedMatch(points, stitches)


def grids_of(points: Mapping[int, StitchPoint]) -> set[Grid]:
    """Return the sizes of the maps at a match: each stitch is solved for on that of its target."""
    return {point.shape[1:] for point in points.values()}


def _deviation(variances: Tensor) -> float:
    """Return the typical deviation of features with these variances; 1 if all are constant."""
    mean = float(variances.mean())
    return mean**0.5 if mean > 0 else 1.0
