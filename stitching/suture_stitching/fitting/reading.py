"""One pass through all members over the fit data: the moments of all matches, for stitches and gates alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_stitching.data import Split
from suture_stitching.ensemble.merge import Merge, Values
from suture_stitching.ensemble.ood_gate import Whitening, whiten
from suture_stitching.features.few_rows import MOST_ROWS, WIDE, FewRows
from suture_stitching.features.moments import Moments, channels_second, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.carriers import Screen, groups_of, kept, kept_of_rows, screened, screened_rows, tallied
from suture_stitching.fitting.terms import PatientTerms
from suture_stitching.running.accumulator import Accumulator
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.shards import Share

#: Positions of a map that are counted per sample: neighbours say much the same, and other samples show others.
POSITIONS = 128
#: Rows per feature after which a closed form hardly changes; the doubled batch has as many.
ROWS = 32
_FEWEST = 256
#: Multiples of the golden section spread most evenly over a circle.
_GOLDEN = 0.6180339887498949

Points: TypeAlias = Mapping[int, StitchPoint]
Grid: TypeAlias = tuple[int, ...]
#: Features of some samples by member and point.
Features: TypeAlias = Mapping[tuple[int, str], Tensor]
#: The splits that a fit reads.
SPLITS: tuple[Split, Split] = ("train", "validation")
#: Moments of `train` and `validation`: both of one form.
Pair: TypeAlias = tuple[Moments, Moments] | tuple[FewRows, FewRows]


class Reading:
    """What was read: moments by match and grid, of the features of all matched members side by side; of both splits.

    `whitenings` and, of the validation split's samples, `distances` `(N,)` are those of the matches where gates look,
    by match: of the features averaged over positions. What matches need of it is worked out when it is asked for, and
    once: not every match is used.
    """

    def __init__(
        self,
        keep: Callable[[int], Mapping[int, Screen]],
        pair: Callable[[int, Grid], Pair],
        whitenings: Mapping[int, Whitening],
        distances: Mapping[int, Tensor],
    ) -> None:
        self.whitenings, self.distances = whitenings, distances
        self._keep, self._pair = keep, pair

    def keep(self, index: int) -> Mapping[int, Screen]:
        """Return by member the maps that leave what enough patients carry of its features at a match."""
        return self._keep(index)

    def keep_of(self, index: int, member: int) -> Screen:
        """Return the map for one member."""
        return self._keep(index)[member]

    def pair(self, index: int, grid: Grid) -> Pair:
        """Return the moments of a match on a grid, of `train` and `validation`, of what enough patients carry."""
        return self._pair(index, grid)


def read_as_rows(passes: FeaturePass, points: Points) -> bool:
    """Whether the rows of a match are kept: it is wide throughout, on one grid, and has few rows."""
    narrowest, grids = min(point.shape[0] for point in points.values()), {point.shape[1:] for point in points.values()}
    positions = min(math.prod(next(iter(grids))), POSITIONS)
    most = max(passes.dataset.n(split) * passes.dataset.patches for split in SPLITS) * positions
    return narrowest >= WIDE and len(grids) == 1 and most <= MOST_ROWS


def columns(points: Points) -> dict[int, slice]:
    """Return where each member's features stand side by side."""
    slices, start = {}, 0
    for member, point in points.items():
        slices[member] = slice(start, start + point.shape[0])
        start += point.shape[0]
    return slices


class MatchReader:
    """Reads what a fit needs at its `matches`: moments, and at the matches `places` what gates need.

    `known` are features of the first training batches, in parts, that need not be computed again.
    """

    def __init__(
        self,
        passes: FeaturePass,
        merge: Merge,
        matches: Sequence[Points],
        places: Sequence[int],
        terms: PatientTerms,
        known: Sequence[Sequence[Features]] = (),
    ) -> None:
        self._passes, self._matches, self._places, self._terms, self._known = passes, matches, places, terms, known
        #: Which matches and members each node is read for.
        self._refs: dict[int, list[tuple[int, int]]] = {}
        for index, points in enumerate(matches):
            for member, point in points.items():
                self._refs.setdefault(merge.point(merge.native, member, point).node, []).append((index, member))
        self._model = passes.model_of(merge, self._refs)
        self._taken = [
            _Taken(points, sorted({point.shape[1:] for point in points.values()}), read_as_rows(passes, points))
            for points in matches
        ]
        #: What was worked out of the moments so far, by match.
        self._keep: dict[int, Mapping[int, Screen]] = {}
        #: The same by match and member, with the rows that are left, where rows are kept.
        self._few: dict[tuple[int, int], tuple[Screen, FewRows]] = {}

    def read(self) -> Reading:
        """Return the moments of both splits; blocks that other processes captured are taken from the checkpoint."""
        checkpoint, tracker, device = self._passes.checkpoint, self._passes.tracker, self._passes.runner.device
        before, start = Accumulator.restored(checkpoint, "reading", device)
        total, block = before.apart()
        whitenings: dict[int, Whitening] = {}
        for split, blocks in self._passes.blocks(SPLITS).items():
            if split == "validation":
                whitenings = {index: self._whitened(index, total) for index in self._places}
            number = start.get(split, 0)
            tracker.skip("solve", number)
            for index, batches in enumerate(blocks):
                if number == batches.start:
                    block, captured = Accumulator.restored(checkpoint, _part(split, index), device)
                    number += captured.get(split, 0)
                    tracker.skip("solve", captured.get(split, 0))
                elif number >= batches.stop:
                    continue
                for parts in self._read(split, range(number, batches.stop)):
                    for part in parts:
                        block.add(part)
                    number += 1
                    if checkpoint.due and number < batches.stop:
                        self._check(block)
                        checkpoint.save("reading", *total.beside(block).kept({**start, split: number}))
                for place, whitening in whitenings.items():
                    block.rows[f"distance.{place}"] = whitening.distance(block.rows.pop(f"pooled.{place}"))
                block.settle()
                self._check(block)
                total.add(block)
                block = Accumulator()
                if checkpoint.due:
                    checkpoint.save("reading", *total.kept({**start, split: number}))
            start[split] = number
        checkpoint.save("reading", *total.kept(start))
        tracker.end("solve")
        distances = {index: total.rows[f"distance.{index}"].cpu() for index in self._places}
        return Reading(
            functools.partial(self._kept, accumulator=total),
            functools.cache(functools.partial(self._screened, accumulator=total)),
            whitenings,
            distances,
        )

    def capture(self, share: Share) -> None:
        """Keep what `read` needs of the blocks of `share` as parts, where it finds them."""
        checkpoint = self._passes.checkpoint
        for split, index, batches in shared_blocks(self._passes, share):
            part = _part(split, index)
            if checkpoint.load(part) is not None:
                self._passes.tracker.skip("solve", len(batches))
                continue
            block = Accumulator()
            for parts in self._read(split, batches):
                for more in parts:
                    block.add(more)
            block.settle()
            self._check(block)
            checkpoint.save(part, *block.kept({split: len(batches)}))
        self._passes.tracker.end("solve")

    def _read(self, split: Split, only: range) -> Iterator[list[Accumulator]]:
        """Yield what there is in the batches `only`, each in parts; features of the first ones may be known."""
        first = len(self._known) if split == "train" else 0
        computed = self._passes.batches(split, range(max(only.start, first), only.stop))
        groups = torch.split(groups_of(self._passes.patients(split)), self._passes.batch)
        for number in only:
            self._passes.tracker.tick("solve")
            if number < first:
                sizes = [len(next(iter(features.values()))) for features in self._known[number]]
                parts = zip(self._known[number], torch.split(groups[number], sizes), strict=True)
                yield [self._reuse(features, split, some) for features, some in parts]
            else:
                run = functools.partial(self._run, split)
                x, _ = next(computed)
                yield self._passes.runner.parts(run, x, groups[number])

    def _check(self, accumulator: Accumulator) -> None:
        """Raise `SutureError` `features.not_finite` if any feature was NaN or infinite."""
        for split in SPLITS:
            for index, taken in enumerate(self._taken):
                for grid in taken.grids:
                    key = _key(split, index, grid)
                    if (moments := accumulator.moments.get(key)) is not None:
                        self._passes.check(moments, taken.named())
                    elif (rows := accumulator.rows.get(key)) is not None:
                        self._passes.check(FewRows(0.0, rows.mean(0), rows), taken.named())
        own = self._terms.own
        for index in self._places:
            if (moments := accumulator.moments.get(f"pooled.{index}")) is not None:
                assert own is not None, "nothing else is pooled"
                point = self._matches[index][own]
                self._passes.check(moments, [(slice(0, point.shape[0]), own, point)])

    def _kept(self, index: int, accumulator: Accumulator) -> Mapping[int, Screen]:
        """Return for each member of a match the map that leaves what enough patients carry."""
        if index not in self._keep:
            points = self._matches[index]
            if self._taken[index].few:
                self._keep[index] = {member: self._kept_rows(index, member, accumulator)[0] for member in points}
            else:
                carried = accumulator.sums[f"carried.{index}"]
                self._keep[index] = kept(carried, columns(points), self._terms.least)
        return self._keep[index]

    def _kept_rows(self, index: int, member: int, accumulator: Accumulator) -> tuple[Screen, FewRows]:
        """Return the same for one member of a match of which rows are kept, and what is left of these."""
        if (index, member) not in self._few:
            rows = accumulator.rows[_key("train", index, self._taken[index].grids[0])]
            train = FewRows.of(rows[:, columns(self._matches[index])[member]])
            groups = groups_of(self._passes.patients("train"))
            self._few[index, member] = kept_of_rows(train, groups, self._terms.least)
        return self._few[index, member]

    def _screened(self, index: int, grid: Grid, accumulator: Accumulator) -> Pair:
        """Return the moments of both splits of what is kept of the features of a match."""
        keep, sides = self._kept(index, accumulator), columns(self._matches[index])
        if self._taken[index].few:
            held_out = FewRows.of(accumulator.rows[_key("validation", index, grid)])
            train = FewRows.beside([self._kept_rows(index, member, accumulator)[1] for member in sides])
            return train, screened_rows(held_out, keep, sides)
        train_moments, validation = (
            screened(accumulator.moments[_key(split, index, grid)], keep, sides) for split in SPLITS
        )
        return train_moments, validation

    def _whitened(self, index: int, accumulator: Accumulator) -> Whitening:
        """Return the whitening of what is kept of the requester's own features."""
        own = self._terms.own
        assert own is not None, "nothing else is pooled"
        if self._taken[index].few:
            rows = FewRows.of(accumulator.rows[f"home.{index}"])
            keep = self._kept_rows(index, own, accumulator)[0]
            whitening = whiten(screened_rows(rows, {0: keep}, {0: slice(0, len(rows.mean))}))
        else:
            pooled, keep = accumulator.moments[f"pooled.{index}"], self._kept(index, accumulator)[own]
            whitening = whiten(screened(pooled, {0: keep}, {0: slice(0, len(pooled.mean))}))
        return Whitening(keep.before(whitening.weight), whitening.bias)

    def _run(self, split: Split, part: Tensor, groups: Tensor) -> Accumulator:
        values = self._passes.runner.stream(self._model, self._refs, part)
        return self._added(((place, value) for node, value in values for place in self._refs[node]), split, groups)

    def _reuse(self, features: Features, split: Split, groups: Tensor) -> Accumulator:
        every = [place for places in self._refs.values() for place in places]
        return self._added(
            ((place, features[place[1], self._matches[place[0]][place[1]].name]) for place in every), split, groups
        )

    def _added(self, features: Iterable[tuple[tuple[int, int], Tensor]], split: Split, groups: Tensor) -> Accumulator:
        """Return moments (and rows) of a part of a batch, match by match as soon as all of it is there."""
        result, open_matches = Accumulator(), [_Side(taken) for taken in self._taken]
        for (index, member), feature in features:
            side = open_matches[index]
            side.put(member, feature, pooled=index in self._places and member == self._terms.own)
            if not side.complete:
                continue
            few = self._taken[index].few
            for grid, rows in side.rows.items():
                if few:
                    result.rows[_key(split, index, grid)] = rows.flatten(0, 1)
                else:
                    result.see(_key(split, index, grid), rows.flatten(0, 1))
            if split == "train" and not few:
                result.placed[f"carried.{index}"] = tallied(side.rows[self._taken[index].grids[-1]], groups)
            if index in self._places:
                if split == "train" and few:
                    result.rows[f"home.{index}"] = side.pooled()
                elif split == "train":
                    result.see(f"pooled.{index}", side.pooled())
                else:  # how far they lie can be told when all of the training split is known
                    result.rows[f"pooled.{index}"] = side.pooled()
            side.forget()
        return result


def read_stitched(
    passes: FeaturePass, merge: Merge, values: Sequence[Values], points: Points
) -> dict[tuple[int, int], Pair]:
    """Return moments of stitched source features beside native target features, by (source, target).

    `values` are the members' values behind earlier stitches; moments are on the target's grid, of both splits. As many
    samples are read as `ROWS` asks for.
    """
    stitched = {member: merge.point(values, member, point).node for member, point in points.items()}
    native = {member: merge.point(merge.native, member, point).node for member, point in points.items()}
    wanted = {*stitched.values(), *native.values()}
    model = passes.model_of(merge, wanted)
    pairs = [(a, b) for a in points for b in points if a != b]
    few = read_as_rows(passes, points)

    def run(split: Split, part: Tensor, _places: Tensor) -> Accumulator:
        features, result = dict(passes.runner.stream(model, wanted, part)), Accumulator()
        for a, b in pairs:
            grid = points[b].shape[1:]
            side = [rows_of(features[stitched[a]], grid, points[a]), rows_of(features[native[b]], grid, points[b])]
            rows = torch.cat(side, 2).flatten(0, 1)
            if few:
                result.rows[f"{split}.{a}.{b}"] = rows
            else:
                result.see(f"{split}.{a}.{b}", rows)
        return result

    total = passes.summed("double", "doubled", run, {split: doubled_batches(passes, split, points) for split in SPLITS})
    moments: Mapping[str, Moments] | Mapping[str, FewRows] = total.moments
    if few:
        moments = {name: FewRows.of(rows) for name, rows in total.rows.items()}
    for (a, b), split in ((pair, split) for pair in pairs for split in SPLITS):
        width = points[a].shape[0]
        named = [(slice(0, width), a, points[a]), (slice(width, None), b, points[b])]
        passes.check(moments[f"{split}.{a}.{b}"], named)
    return {(a, b): (moments[f"train.{a}.{b}"], moments[f"validation.{a}.{b}"]) for a, b in pairs}  # type: ignore[misc]


def doubled(
    native: Pair,
    sides: tuple[slice, slice],
    stitched: Pair,
    keep: Mapping[int, Screen],
    place: Mapping[int, slice],
) -> Pair:
    """Return what is known of the columns `sides` of `native` moments and as much of the `stitched` ones together.

    Of the latter, whose members stand at `place`, what is kept.
    """
    if isinstance(native[0], FewRows):
        rows = [
            own.select(*sides) + screened_rows(more, keep, place).scaled(own.n)
            for own, more in zip(native, stitched, strict=True)
            if isinstance(own, FewRows) and isinstance(more, FewRows)
        ]
        return rows[0], rows[1]
    both = [
        own.select(*sides) + screened(more, keep, place).scaled(own.n)
        for own, more in zip(native, stitched, strict=True)
        if isinstance(own, Moments) and isinstance(more, Moments)
    ]
    return both[0], both[1]


def doubled_batches(passes: FeaturePass, split: Split, points: Points) -> int:
    """Return how many batches of `split` the doubled batch is solved on."""
    enough = max(
        ROWS * point.shape[0] // min(POSITIONS, torch.Size(point.shape[1:]).numel()) for point in points.values()
    )
    return min(passes.number_of_batches(split), -(-max(enough, _FEWEST) // passes.batch))


def shared_blocks(passes: FeaturePass, share: Share) -> list[tuple[Split, int, range]]:
    """Return split, number and batches of each block of a share; the blocks of both splits are dealt out together."""
    every = [(split, *block) for split, blocks in passes.blocks(SPLITS).items() for block in enumerate(blocks)]
    return [block for number, block in enumerate(every) if share.has(number)]


@dataclass(frozen=True)
class _Taken:
    """What is taken from the features of one match: rows on each of `grids`, which are kept where they are `few`."""

    points: Points
    grids: Sequence[Grid]
    few: bool

    def named(self) -> list[tuple[slice, int, StitchPoint]]:
        """Return the columns of each member, with it and its point."""
        return [(column, member, self.points[member]) for member, column in columns(self.points).items()]


class _Side:
    """The features of one match side by side, for a part of a batch."""

    def __init__(self, taken: _Taken) -> None:
        self._taken, self._columns = taken, columns(taken.points)
        self._width = sum(point.shape[0] for point in taken.points.values())
        self._missing = set(taken.points)
        self._means: dict[int, Tensor] = {}
        #: `(N, positions, D)` by grid.
        self.rows: dict[Grid, Tensor] = {}

    @property
    def complete(self) -> bool:
        return not self._missing

    def put(self, member: int, feature: Tensor, *, pooled: bool) -> None:
        """Take what is needed of a member's features."""
        point = self._taken.points[member]
        for grid in self._taken.grids:
            rows = rows_of(feature, grid, point)
            if grid not in self.rows:
                self.rows[grid] = rows.new_empty((*rows.shape[:2], self._width), dtype=torch.float32)
            self.rows[grid][:, :, self._columns[member]] = rows
        if pooled:
            self._means[member] = to_grid(channels_second(feature, point.channel_axis).float(), ())
        self._missing.discard(member)

    def pooled(self) -> Tensor:
        """Return the means over positions of the requester's own features, `(N, C)`."""
        (means,) = self._means.values()
        return means

    def forget(self) -> None:
        """Let go of the features."""
        self.rows, self._means = {}, {}


def _part(split: Split, index: int) -> str:
    return f"reading-{split}-{index}"


def _key(split: Split, index: int, grid: Grid) -> str:
    return ".".join(map(str, (split, index, *grid)))


def rows_of(feature: Tensor, grid: Grid, point: StitchPoint) -> Tensor:
    """Return a feature map on `grid`, at no more than `POSITIONS` positions per sample: `(N, positions, C)`."""
    feature = channels_second(feature, point.channel_axis)
    positions = math.prod(grid)
    if (
        positions > POSITIONS
        and len(grid) in (2, 3)
        and all(a < b for a, b in zip(feature.shape[2:], grid, strict=True))
    ):
        return _enlarged(feature, grid, _positions(len(feature), positions).to(feature.device))
    resampled = to_grid(feature, grid)
    if resampled.dim() == 2:
        return resampled.unsqueeze(1)
    flat = resampled.flatten(2)
    if flat.shape[2] > POSITIONS:
        kept = _positions(len(flat), flat.shape[2]).to(flat.device)
        flat = flat.gather(2, kept[:, None].expand(-1, flat.shape[1], -1))
    return flat.transpose(1, 2)


def _enlarged(feature: Tensor, grid: Grid, kept: Tensor) -> Tensor:
    """Return what `to_grid` gives at the positions `kept` `(N, P)` of a larger grid: `(N, P, C)`, without the rest."""
    axes = []
    for size in reversed(grid):
        # From the middle of a position to -1..1, as `grid_sample` wants it: the last axis first.
        axes.append((kept % size).float().add(0.5).mul(2 / size).sub(1))
        kept = kept // size
    places = torch.stack(axes, -1).reshape(len(feature), *(1 for _ in grid[1:]), -1, len(grid))
    sampled = F.grid_sample(feature.float(), places, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.flatten(2).transpose(1, 2)


@lru_cache(maxsize=64)
def _positions(samples: int, positions: int) -> Tensor:
    """Return `(samples, POSITIONS)` indices of positions: a random set, shifted from one sample to the next.

    Evenly spaced ones would be blind to what repeats in steps of their distance, as the output of a transposed
    convolution does; the same ones for all samples, to what other positions show. These serve as well as all of them.
    """
    some = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:POSITIONS]
    shifts = torch.arange(samples) * round(_GOLDEN * positions)
    return ((some + shifts[:, None]) % positions).sort(1).values
