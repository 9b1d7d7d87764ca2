"""What other parties' moments say beside the own ones: how much they count for, and which of them are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from suture_stitching.features.moments import Moments
from suture_stitching.fitting.carriers import Screen, screened
from suture_stitching.fitting.contribute import Contribution
from suture_stitching.fitting.reading import Grid, Points, Reading, columns
from suture_stitching.fitting.stitch import grids_of

#: What other parties' moments count for where some were contributed, the most promising first.
SHARES = (0.5, 0.25, 0.75)
#: How much larger the mean square of another party's features may be than that of the own ones.
_LARGEST = 1e6


def weighed(
    matches: Sequence[Points], reading: Reading, contributions: Sequence[Contribution]
) -> Iterator[tuple[float, int, Mapping[Grid, tuple[Moments, Moments]]]]:
    """Yield a share, a match and its moments by grid as if that share of all rows were the other parties'.

    All parties that contributed to a match count alike. A match to which nobody did is left out.
    """
    for share in SHARES if contributions else ():
        for index, points in enumerate(matches):
            pairs = {grid: reading.pair(index, grid) for grid in grids_of(points)}
            own = {grid: (train.dense(), held_out.dense()) for grid, (train, held_out) in pairs.items()}
            contributed = [{grid: other.pair(points, grid) for grid in own} for other in contributions]
            plausible = [others for others in contributed if _is_plausible(own, others)]
            if plausible:
                keep, side = reading.keep(index), columns(points)
                yield (
                    share,
                    index,
                    {
                        grid: _screened(_together(pair, [others[grid] for others in plausible], share), keep, side)
                        for grid, pair in own.items()
                    },
                )


def _is_plausible(
    own: Mapping[Grid, tuple[Moments, Moments]], others: Mapping[Grid, tuple[Moments, Moments] | None]
) -> bool:
    """Whether another party's features are there, and not so large that what is solved for with them overflows."""
    for grid, pair in own.items():
        other = others[grid]
        if other is None or any(
            _size(theirs) > _LARGEST * _size(ours) for ours, theirs in zip(pair, other, strict=True)
        ):
            return False
    return True


def _size(moments: Moments) -> float:
    """Return the mean square of all features."""
    return float(moments.covariance.diagonal().mean() + moments.mean.square().mean())


def _together(
    own: tuple[Moments, Moments], others: Sequence[tuple[Moments, Moments] | None], share: float
) -> tuple[Moments, Moments]:
    """Return the moments of both splits as if `share` of all rows were the others', each party's alike."""
    totals = []
    for split, moments in enumerate(own):
        theirs = [other[split].to(moments.mean.device) for other in others if other is not None]
        total = moments.scaled(moments.n * (1 - share))
        for other in theirs:
            total = total + other.scaled(moments.n * share / len(theirs))
        totals.append(total)
    return totals[0], totals[1]


def _screened(
    pair: tuple[Moments, Moments], keep: Mapping[int, Screen], side: Mapping[int, slice]
) -> tuple[Moments, Moments]:
    return screened(pair[0], keep, side), screened(pair[1], keep, side)
