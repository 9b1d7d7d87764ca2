"""What a fit has to do, step by step, and what each unit of it costs: what its progress is told.

Arithmetic is counted in multiplications of the networks, with what they write (see `plans.price_of`). What networks of
a few small layers take is mostly not arithmetic, so that a step of training has seconds of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, TypeAlias

from suture_contract.fit_options import FitOptions
from suture_stitching.data import Split
from suture_stitching.ensemble.merge import Join, Merge
from suture_stitching.features.moments import MANY
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.carriers import GROUPS
from suture_stitching.fitting.contributed import SHARES
from suture_stitching.fitting.gates import compared
from suture_stitching.fitting.plans import MOVING, CandidatePlan, Prices, closed_forms, to_refine
from suture_stitching.fitting.reading import POSITIONS, SPLITS, Points, doubled_batches, read_as_rows, shared_blocks
from suture_stitching.fitting.refine import TrainingLength, kept_splits
from suture_stitching.fitting.stitch import grids_of
from suture_stitching.fitting.survey import compared_by_rows, sketched, surveyed_samples
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.shards import ALL, Share, dealt
from suture_stitching.running.tracker import UnitCost

#: The parts of a fit that several processes can share, in this order: one begins when all of the one before is done.
Step: TypeAlias = Literal["capture", "refine"]
#: What a decomposition of features of width 1 costs, in multiplications: it is in double precision.
_EIGEN = 20.0
#: The same of products of few rows, which are in single precision.
_ROWS_EIGEN = 7.0
#: How often kept rows are gone through for a stitch.
_GONE_THROUGH = 8
#: What a step of training costs, in passes of what lies behind the match: forward, and back to stitches and features.
_BACK_AND_FORTH = 3
#: Seconds of a step of training, of a look at a batch, of solving for a stitch and of choosing candidates that are no
#: arithmetic.
_STEP, _LOOK, _SOLVING, _CHOOSING = 2e-3, 5e-4, 1e-3, 0.04
#: Seconds of a multiplication, about.
_USUAL = 2e-10


class Effort:
    """Tells the tracker of `passes` what there is to do for members with these `points`."""

    def __init__(
        self,
        passes: FeaturePass,
        merge: Merge,
        points: Sequence[Sequence[StitchPoint]],
        options: FitOptions,
        training: TrainingLength,
    ) -> None:
        self._passes, self._points, self._options, self._training = passes, points, options, training
        self._prices = Prices(merge, passes.shape)
        #: What each candidate that is refined here costs, look by look; and which part of their looks the first took.
        self._candidates: list[list[UnitCost]] = []
        self._taken: list[float] = []
        #: The numbers of the candidates that are refined here, and whether something that mixes twice is solved for
        #: here: a share of training that has none of it does not.
        self.own: list[int] = []
        self.chained = True

    @property
    def surveyed(self) -> int:
        """How many batches are looked at for a match: none where fewer than two members have points."""
        return len(self._survey())

    def begin(self, step: Step | Literal["match"] | None, share: Share, *, private: bool) -> None:
        """Tell what there is to do, as far as it is known before the members are matched."""
        expect = self._passes.tracker.expect
        passed = [self._pass(size) for split in SPLITS for size in self._passes.sizes(split)]
        if private:
            expect("solve", passed)
            return
        expect("match", self._survey())
        if step == "capture":
            expect("solve", [self._pass(size) for size in self._shared(share)])
        elif step != "match":
            expect("solve", passed)
            # Where matches will be is not known: as if they were at the last points of all.
            last = [{m: some[-2:][at] for m, some in enumerate(self._points) if len(some) > 1} for at in (0, 1)]
            self._stitching([points for points in last if len(points) > 1], step, share)

    def matched(
        self,
        matches: Sequence[Points],
        known: int,
        step: Step | None = None,
        share: Share = ALL,
        *,
        contributions: bool = False,
    ) -> None:
        """Tell what there is to do at these matches, where features of so many batches are `known`."""
        expect, sizes = self._passes.tracker.expect, {split: self._passes.sizes(split) for split in SPLITS}
        few = [read_as_rows(self._passes, points) for points in matches]
        moments = sum(
            _width(points) * MOVING if kept else self._moments(_width(points), grid)
            for points, kept in zip(matches, few, strict=True)
            for grid in grids_of(points)
        )
        patients = min(self._passes.dataset.patients("train"), GROUPS)
        widths = [
            point.shape[0] for points, kept in zip(matches, few, strict=True) if not kept for point in points.values()
        ]
        # Of a match whose rows are kept, those of the requester's own network where a gate looks: at two, mostly.
        looked_at = [min(points.values(), key=_channels) for points, kept in zip(matches, few, strict=True) if kept]
        screening = UnitCost(
            _EIGEN * sum(width * min(width, patients) ** 2 for width in widths)
            + sum(self._of_rows(point) for point in looked_at[-2:])
        )
        if step == "capture":
            first = sum(size == self._passes.batch for size in sizes["train"][:known])
            shared = self._shared(share)
            expect("solve", [self._pass(size, moments, known=number < first) for number, size in enumerate(shared)])
            return
        solving = [
            self._pass(size, moments, known=split == "train" and number < known)
            for split in SPLITS
            for number, size in enumerate(sizes[split])
        ]
        if sizes["train"]:
            solving[len(sizes["train"]) - 1] += screening
        expect("solve", solving)
        self._stitching(matches, step, share, contributions=contributions)

    def _stitching(
        self, matches: Sequence[Points], step: Step | None, share: Share, *, contributions: bool = False
    ) -> None:
        expect = self._passes.tracker.expect
        joins = [Join(points, 0.5, {}) for points in matches]
        plans = closed_forms(joins, self._options.alphas)
        if len(joins) > 1:
            plans.append(CandidatePlan(tuple(joins[-2:])))
        refined: list[CandidatePlan] = []
        if plans and self._options.refine:
            refined = to_refine(plans, self._options.alphas, self._options.refine_candidates)
        looks, double = [self._looks(plan.joins[0]) for plan in refined], [UnitCost(0.0)]
        if len(joins) > 1:
            double = self._doubled(joins)
        # What mixes twice is read for once more, which nobody else does.
        costs = [
            sum(map(_seconds, own)) + (sum(map(_seconds, double)) if len(plan.joins) > 1 else 0.0)
            for plan, own in zip(refined, looks, strict=True)
        ]
        self.own = dealt(costs, share.count)[share.index]
        self.chained = step != "refine" or any(len(refined[number].joins) > 1 for number in self.own)
        # Those that others are read behind; most of the rest is asked for by nobody.
        used = matches[-2:-1] if self.chained else ()
        stitches = [
            UnitCost(self._solving(points[a], points[b], points), _SOLVING)
            if points in used
            else UnitCost(0.0, _SOLVING)
            for points in matches
            for a, b in _pairs(points)
        ]
        expect("stitch", stitches * (1 + len(SHARES) * contributions))
        expect("double", double if self.chained and len(joins) > 1 else ())
        self._candidates = [looks[number] for number in self.own]
        self._training_left()
        if step is None:
            sizes = self._passes.sizes("validation")
            expect("compare", [self._pass(compared(sizes)) + UnitCost(self._last(matches), _CHOOSING)])

    def _last(self, matches: Sequence[Points]) -> float:
        """Return what the stitches of the last match cost, which most fits offer: they are solved for at the end."""
        cost = 0.0
        for points in matches[-1:]:
            cost += sum(self._solving(points[a], points[b], points) for a, b in _pairs(points))
            if read_as_rows(self._passes, points):  # a gate has looked at the directions of one of them
                cost -= min(map(self._of_rows, points.values()))
        return cost

    def _doubled(self, joins: Sequence[Join]) -> list[UnitCost]:
        last = joins[-1].points
        moments = 0.0
        if not read_as_rows(self._passes, last):
            widths = [(last[a].shape[0] + last[b].shape[0], last[b].shape[1:]) for a, b in _pairs(last)]
            moments = sum(self._moments(width, grid) for width, grid in widths)
        each = self._prices.all + self._prices.behind(joins[-2]) + _through(joins[-2].points) + moments
        units = [
            UnitCost(size * each)
            for split in SPLITS
            for size in self._passes.sizes(split)[: doubled_batches(self._passes, split, last)]
        ]
        # What they are solved for with comes after the last of them.
        solved = [UnitCost(self._solving(last[a], last[b], last, times=2), _SOLVING) for a, b in _pairs(last)]
        return units + solved

    def trained(self, looks: int) -> None:
        """Tell that one more candidate was trained, in so many looks: the others may stop as early."""
        self._taken.append(looks / self._training.looks)
        self._training_left()

    def _training_left(self) -> None:
        part, done = (1 + sum(self._taken)) / (1 + len(self._taken)), len(self._taken)
        looks = [
            look if number < done or not place else look.times(part)
            for number, candidate in enumerate(self._candidates)
            for place, look in enumerate(candidate)
        ]
        self._passes.tracker.expect("refine", looks)

    def _survey(self) -> list[UnitCost]:
        if sum(map(bool, self._points)) < 2:
            return []
        width = sum(sketched(self._points))
        positions = sum(min(prod(point.shape[1:]), 16) for some in self._points for point in some)
        positions //= sum(map(len, self._points))
        seen = sum(prod(point.shape) for some in self._points for point in some)
        samples, each = surveyed_samples(self._passes, self._points), self._prices.all + MOVING * seen
        if not compared_by_rows(self._passes, self._points):
            return [UnitCost(size * (each + positions * width * width)) for size in samples]
        units = [UnitCost(size * each) for size in samples]
        # Each row of a point with each of its others, once all of them are there.
        units[-1] += UnitCost(sum(samples) ** 2 * sum(point.shape[0] for some in self._points for point in some))
        return units

    def _pass(self, samples: int, moments: float = 0.0, *, known: bool = False) -> UnitCost:
        return UnitCost(samples * (moments + (0.0 if known else self._prices.all)))

    def _moments(self, width: int, grid: Sequence[int]) -> float:
        """Return what the moments of so many features side by side cost for a sample."""
        return min(prod(grid), POSITIONS) * width * ((width / 2 if width > MANY else width) + MOVING)

    def _of_rows(self, point: StitchPoint, times: int = 1) -> float:
        """Return what the directions of a point's rows cost, which are kept `times` times."""
        few, many = sorted((times * self._rows(point.shape[1:]), point.shape[0]))
        return few**2 * (_ROWS_EIGEN * few + many)

    def _solving(self, source: StitchPoint, target: StitchPoint, points: Points, times: int = 1) -> float:
        """Return what a stitch between these of the matched `points` costs."""
        if not read_as_rows(self._passes, points):
            return _EIGEN * self._decomposition(source.shape[0], target.shape[1:])
        rows, held_out = (times * self._rows(target.shape[1:], split) for split in SPLITS)
        width, goal = source.shape[0], target.shape[0]
        directions = min(rows, width)
        # Both ends along the directions, these with each other, and the stitch: that from which training starts, too.
        products = (width + goal) * (rows + held_out) + directions * (directions + goal + held_out)
        products += width * goal * (1 + self._options.refine)
        gone_through = _GONE_THROUGH * MOVING * (rows + held_out) * (width + goal)
        return self._of_rows(source, times) + directions * products + gone_through

    def _rows(self, grid: Sequence[int], split: Split = "train") -> float:
        """Return how many rows of features on a grid a split has."""
        return float(self._passes.dataset.n(split) * self._passes.dataset.patches * min(prod(grid), POSITIONS))

    def _decomposition(self, width: int, grid: Sequence[int]) -> float:
        """Return how many multiplications, in units of `_EIGEN`, directions of so many features take to find."""
        rows = self._rows(grid)
        return width**2 * (rows if 2 * rows <= width else width)

    def _shared(self, share: Share) -> list[int]:
        sizes = {split: self._passes.sizes(split) for split in SPLITS}
        return [sizes[split][number] for split, _, block in shared_blocks(self._passes, share) for number in block]

    def _looks(self, join: Join) -> list[UnitCost]:
        """Return what each look at a candidate costs, with the training before it, and reading before the first."""
        behind, points = self._prices.behind(join), join.points.values()
        training, samples = self._training, self._training.samples
        batch, front = min(training.batch, samples["train"]), self._prices.all - behind
        kept = kept_splits(samples, 4 * (prod(self._passes.shape) + sum(prod(point.shape) for point in points)))
        batches = -(-samples["validation"] // training.batch)
        each = behind + (0.0 if "validation" in kept else front)
        look = UnitCost(samples["validation"] * each, batches * _LOOK)
        each = _BACK_AND_FORTH * behind + (0.0 if "train" in kept else front)
        step = UnitCost(batch * each, _STEP)
        reading = UnitCost(sum(samples[split] for split in kept) * front)
        return [look + reading, *(look + step.times(training.steps_of(number)) for number in range(training.rounds))]


def _seconds(cost: UnitCost) -> float:
    """Return how long something takes on a usual processor: on every machine the same, to deal out work by."""
    return cost.work * _USUAL + cost.seconds


def _channels(point: StitchPoint) -> int:
    return point.shape[0]


def _width(points: Points) -> int:
    return sum(point.shape[0] for point in points.values())


def _through(points: Points) -> float:
    """Return what the stitches at a match cost for a sample."""
    return sum(points[a].shape[0] * prod(points[b].shape) for a, b in _pairs(points))


def _pairs(points: Points) -> list[tuple[int, int]]:
    return [(a, b) for a in points for b in points if a != b]
