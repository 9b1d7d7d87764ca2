"""One pass through all members over the fit data: the moments of all matches, for stitches and gates alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.errors import SutureError
from suture_contract.model.graph import Ref
from suture_stitching.data import Dataset, Split
from suture_stitching.ensemble.members import Member, batch_size, batches, input_shape, number_of_batches
from suture_stitching.ensemble.merge import Merge, Values
from suture_stitching.ensemble.ood_gate import Whitening, whiten
from suture_stitching.features.moments import Moments, channels_second, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.accumulator import Accumulator
from suture_stitching.fitting.carriers import groups_of, kept, screened, tallied
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.device import Runner
from suture_stitching.running.shards import Share, blocks
from suture_stitching.running.tracker import Tracker

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
_SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True)
class Reader:
    """What is read: all members on a dataset, the training split shuffled by `seed`; and what runs them.

    `own` is the requester's own member, the only one that gates look through; `least` is how many patients must carry
    a feature that takes part.
    """

    members: Sequence[Member]
    dataset: Dataset
    runner: Runner
    seed: int
    own: int | None = None
    least: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What the members together read, `(C, *spatial)`."""
        return input_shape(self.members, self.dataset)

    def number_of_batches(self, split: Split) -> int:
        """Return how many batches a pass over `split` has."""
        return number_of_batches(self.dataset, split, self.shape)

    def batches(self, split: Split, only: range | None = None, *, shuffled: bool = True) -> Iterator[Tensor]:
        """Yield the inputs of the batches `only` of `split`, or of all, in the same order every time.

        Without `shuffled` it is the order of `Dataset.patient_of`.
        """
        seed = self.seed if split == "train" and shuffled else None
        for x, _ in batches(self.members, self.dataset, split, self.runner.device, seed=seed, only=only):
            yield x

    def groups(self, split: Split) -> Tensor:
        """Return the group of patients of each sample of `split`, in the order of `batches`."""
        return groups_of(self.dataset.patient_of(split, self.seed if split == "train" else None))

    def check(self, moments: Moments, columns: Sequence[tuple[slice, int, StitchPoint]]) -> None:
        """Raise `SutureError` `features.not_finite` naming the first member and point with NaN or infinity."""
        finite = moments.finite.cpu()
        for column, member, point in columns:
            if not bool(finite[column].all()):
                raise SutureError(
                    "features.not_finite",
                    f"the model gives NaN or infinity at {point.name} ({point.module}) on this data",
                    where=self.members[member].ref.repo,
                    hint="check that the data are in the value range that its suture.json names",
                )


@dataclass(frozen=True)
class Reading:
    """Moments by match and grid, of the features of all matched members side by side; of both splits.

    `keep` are, by match and member, the maps `(C, C)` that leave what enough patients carry.
    `whitenings` and, of the validation split's samples, `distances` `(N,)` are those of the matches where gates look,
    by match: of the features averaged over positions.
    """

    moments: Mapping[tuple[int, Grid], tuple[Moments, Moments]]
    keep: Mapping[int, Mapping[int, Tensor]]
    whitenings: Mapping[int, Whitening]
    distances: Mapping[int, Tensor]

    def pair(self, index: int, grid: Grid) -> tuple[Moments, Moments]:
        """Return the moments of a match on a grid, of `train` and `validation`, of what enough patients carry."""
        return self.moments[index, grid]


def columns(points: Points) -> dict[int, slice]:
    """Return where each member's features stand side by side."""
    found, start = {}, 0
    for member, point in points.items():
        found[member] = slice(start, start + point.shape[0])
        start += point.shape[0]
    return found


def read(
    reader: Reader,
    merge: Merge,
    groups: Sequence[Points],
    places: Sequence[int],
    tracker: Tracker,
    checkpoint: Checkpoint,
    known: Sequence[Sequence[Features]] = (),
) -> Reading:
    """Return the moments of `groups` over both splits, and what gates at the matches `places` need.

    `known` are features of the first training batches, in parts, that need not be computed again.
    """
    look = _Look(reader, merge, groups, places)
    before, start = Accumulator.restored(checkpoint, "reading", reader.runner.device)
    accumulator, block = before.apart()
    whitenings: dict[int, Whitening] = {}
    keep: dict[int, dict[int, Tensor]] = {}
    for split in _SPLITS:
        if split == "validation":
            keep = look.kept(accumulator)
            whitenings = {index: look.whitened(index, accumulator, keep[index]) for index in places}
        number = start.get(split, 0)
        tracker.skip("solve", number)
        for index, own in enumerate(blocks(reader.number_of_batches(split))):
            if number == own.start:
                block, found = Accumulator.restored(checkpoint, _part(split, index), reader.runner.device)
                number += found.get(split, 0)
                tracker.skip("solve", found.get(split, 0))
            elif number >= own.stop:
                continue
            for parts in look.at(split, range(number, own.stop), known, tracker):
                for part in parts:
                    block.add(part)
                number += 1
                if checkpoint.due and number < own.stop:
                    look.check(block)
                    checkpoint.save("reading", *accumulator.beside(block).kept({**start, split: number}))
            for place, whitening in whitenings.items():
                block.rows[f"distance.{place}"] = whitening.distance(block.rows.pop(f"pooled.{place}"))
            look.check(block)
            accumulator.add(block)
            block = Accumulator()
            if checkpoint.due:
                checkpoint.save("reading", *accumulator.kept({**start, split: number}))
        start[split] = number
    checkpoint.save("reading", *accumulator.kept(start))
    moments = {
        (index, grid): look.screened(index, accumulator, grid, keep[index])
        for index, one in enumerate(look.taken)
        for grid in one.grids
    }
    return Reading(moments, keep, whitenings, {index: accumulator.rows[f"distance.{index}"].cpu() for index in places})


def capture(
    reader: Reader,
    merge: Merge,
    groups: Sequence[Points],
    places: Sequence[int],
    tracker: Tracker,
    checkpoint: Checkpoint,
    share: Share,
    known: Sequence[Sequence[Features]] = (),
) -> None:
    """Keep what `read` needs of the blocks of `share` as parts, where it finds them; arguments as for `read`."""
    look = _Look(reader, merge, groups, places)
    for split, index, own in shared_blocks(reader, share):
        part = _part(split, index)
        if checkpoint.load(part) is not None:
            tracker.skip("solve", len(own))
            continue
        block = Accumulator()
        for parts in look.at(split, own, known, tracker):
            for found in parts:
                block.add(found)
        look.check(block)
        checkpoint.save(part, *block.kept({split: len(own)}))


def shared_blocks(reader: Reader, share: Share) -> list[tuple[Split, int, range]]:
    """Return split, number and batches of each block of a share; the blocks of both splits are dealt out together."""
    every = [(split, *one) for split in _SPLITS for one in enumerate(blocks(reader.number_of_batches(split)))]
    return [one for number, one in enumerate(every) if share.has(number)]


class _Look:
    """What one pass takes from the features of `groups`, and at `places` for gates."""

    def __init__(self, reader: Reader, merge: Merge, groups: Sequence[Points], places: Sequence[int]) -> None:
        self._reader, self._groups, self._places = reader, groups, places
        #: Which matches and members each node is read for.
        self._refs: dict[int, list[tuple[int, int]]] = {}
        for index, points in enumerate(groups):
            for member, point in points.items():
                self._refs.setdefault(merge.point(merge.native, member, point).node, []).append((index, member))
        self._model = reader.runner.model(merge.graph(tuple(map(Ref, self._refs))), merge.tensors, reader.shape)
        self.taken = [_Taken(points, sorted({point.shape[1:] for point in points.values()})) for points in groups]

    def at(
        self, split: Split, only: range, known: Sequence[Sequence[Features]], tracker: Tracker
    ) -> Iterator[list[Accumulator]]:
        """Yield what is found in the batches `only`, each in parts; features of the first ones may be `known`."""
        first = len(known) if split == "train" else 0
        computed = self._reader.batches(split, range(max(only.start, first), only.stop))
        groups = torch.split(self._reader.groups(split), batch_size(self._reader.dataset, self._reader.shape))
        for number in only:
            tracker.tick("solve", known=number < first)
            if number < first:
                sizes = [len(next(iter(features.values()))) for features in known[number]]
                parts = zip(known[number], torch.split(groups[number], sizes), strict=True)
                yield [self._reuse(features, split, own) for features, own in parts]
            else:
                run = functools.partial(self._run, split)
                yield self._reader.runner.parts(run, next(computed), groups[number])

    def check(self, accumulator: Accumulator) -> None:
        """Raise `SutureError` `features.not_finite` if any feature was NaN or infinite."""
        for split in _SPLITS:
            for index, one in enumerate(self.taken):
                for grid in one.grids:
                    if (moments := accumulator.moments.get(_key(split, index, grid))) is not None:
                        self._reader.check(moments, one.named())
        own = self._reader.own
        for index in self._places:
            if (moments := accumulator.moments.get(f"pooled.{index}")) is not None:
                assert own is not None, "nothing else is pooled"
                point = self._groups[index][own]
                self._reader.check(moments, [(slice(0, point.shape[0]), own, point)])

    def kept(self, accumulator: Accumulator) -> dict[int, dict[int, Tensor]]:
        """Return for each match and member the map that leaves what enough patients carry."""
        return {
            index: kept(accumulator.sums[f"carried.{index}"], columns(points), self._reader.least)
            for index, points in enumerate(self._groups)
        }

    def screened(
        self, index: int, accumulator: Accumulator, grid: Grid, keep: Mapping[int, Tensor]
    ) -> tuple[Moments, Moments]:
        """Return the moments of both splits of what is kept of the features of a match."""
        own = columns(self._groups[index])
        train, validation = (screened(accumulator.moments[_key(split, index, grid)], keep, own) for split in _SPLITS)
        return train, validation

    def whitened(self, index: int, accumulator: Accumulator, keep: Mapping[int, Tensor]) -> Whitening:
        """Return the whitening of what is kept of the requester's own features."""
        own = self._reader.own
        assert own is not None, "nothing else is pooled"
        pooled = accumulator.moments[f"pooled.{index}"]
        found = whiten(screened(pooled, {0: keep[own]}, {0: slice(0, len(pooled.mean))}))
        return Whitening(found.weight @ keep[own].to(found.weight), found.bias)

    def _run(self, split: Split, part: Tensor, groups: Tensor) -> Accumulator:
        values = self._reader.runner.stream(self._model, self._refs, part)
        return self._found(((place, value) for node, value in values for place in self._refs[node]), split, groups)

    def _reuse(self, features: Features, split: Split, groups: Tensor) -> Accumulator:
        every = [place for places in self._refs.values() for place in places]
        return self._found(
            ((place, features[place[1], self._groups[place[0]][place[1]].name]) for place in every), split, groups
        )

    def _found(self, features: Iterable[tuple[tuple[int, int], Tensor]], split: Split, groups: Tensor) -> Accumulator:
        """Return moments (and rows) of a part of a batch, match by match as soon as all of it is there."""
        result, open_groups = Accumulator(), [_Side(one) for one in self.taken]
        for (index, member), feature in features:
            side = open_groups[index]
            side.put(member, feature, pooled=index in self._places and member == self._reader.own)
            if not side.complete:
                continue
            for grid, rows in side.rows.items():
                result.moments[_key(split, index, grid)] = Moments.of(rows.flatten(0, 1))
            if split == "train":
                result.sums[f"carried.{index}"] = tallied(side.rows[self.taken[index].grids[-1]], groups)
            if index in self._places:
                if split == "train":
                    result.moments[f"pooled.{index}"] = Moments.of(side.pooled())
                else:  # how far they lie can be told when all of the training split is known
                    result.rows[f"pooled.{index}"] = side.pooled()
            side.forget()
        return result


def read_stitched(
    reader: Reader, merge: Merge, values: Sequence[Values], points: Points, tracker: Tracker, checkpoint: Checkpoint
) -> dict[tuple[int, int], tuple[Moments, Moments]]:
    """Return moments of stitched source features beside native target features, by (source, target).

    `values` are the members' values behind earlier stitches; moments are on the target's grid, of both splits. As many
    samples are read as `ROWS` asks for.
    """
    stitched = {member: merge.point(values, member, point).node for member, point in points.items()}
    native = {member: merge.point(merge.native, member, point).node for member, point in points.items()}
    wanted = {*stitched.values(), *native.values()}
    model = reader.runner.model(merge.graph(tuple(map(Ref, wanted))), merge.tensors, reader.shape)
    pairs = [(a, b) for a in points for b in points if a != b]

    def run(part: Tensor, split: Split) -> Accumulator:
        features, result = dict(reader.runner.stream(model, wanted, part)), Accumulator()
        for a, b in pairs:
            grid = points[b].shape[1:]
            side = [rows_of(features[stitched[a]], grid, points[a]), rows_of(features[native[b]], grid, points[b])]
            result.moments[f"{split}.{a}.{b}"] = Moments.of(torch.cat(side, 2).flatten(0, 1))
        return result

    accumulator, start = Accumulator.restored(checkpoint, "doubled", reader.runner.device)
    for split in _SPLITS:
        number, most = start.get(split, 0), doubled_batches(reader, split, points)
        tracker.skip("double", number)
        if number < most:
            for x in reader.batches(split, range(number, most)):
                tracker.tick("double")
                for part in reader.runner.parts(lambda part, split=split: run(part, split), x):
                    accumulator.add(part)
                number += 1
                if checkpoint.due:
                    checkpoint.save("doubled", *accumulator.kept({**start, split: number}))
        start[split] = number
    for (a, b), split in ((pair, split) for pair in pairs for split in _SPLITS):
        width = points[a].shape[0]
        named = [(slice(0, width), a, points[a]), (slice(width, None), b, points[b])]
        reader.check(accumulator.moments[f"{split}.{a}.{b}"], named)
    checkpoint.save("doubled", *accumulator.kept(start))
    return {
        (a, b): (accumulator.moments[f"train.{a}.{b}"], accumulator.moments[f"validation.{a}.{b}"]) for a, b in pairs
    }


def doubled_batches(reader: Reader, split: Split, points: Points) -> int:
    """Return how many batches of `split` the doubled batch is solved on."""
    enough = max(
        ROWS * point.shape[0] // min(POSITIONS, torch.Size(point.shape[1:]).numel()) for point in points.values()
    )
    size = batch_size(reader.dataset, reader.shape)
    return min(reader.number_of_batches(split), -(-max(enough, _FEWEST) // size))


@dataclass(frozen=True)
class _Taken:
    """What is taken from the features of one match: rows on each of `grids`."""

    points: Points
    grids: Sequence[Grid]

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
    found = to_grid(feature, grid)
    if found.dim() == 2:
        return found.unsqueeze(1)
    flat = found.flatten(2)
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
    found = F.grid_sample(feature.float(), places, mode="bilinear", padding_mode="border", align_corners=False)
    return found.flatten(2).transpose(1, 2)


@lru_cache(maxsize=64)
def _positions(samples: int, positions: int) -> Tensor:
    """Return `(samples, POSITIONS)` indices of positions: a random set, shifted from one sample to the next.

    Evenly spaced ones would be blind to what repeats in steps of their distance, as the output of a transposed
    convolution does; the same ones for all samples, to what other positions show. These serve as well as all of them.
    """
    some = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:POSITIONS]
    shifts = torch.arange(samples) * round(_GOLDEN * positions)
    return ((some + shifts[:, None]) % positions).sort(1).values
