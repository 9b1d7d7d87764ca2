"""The first look at all stitch points: how similar they are, from a part of the data at a few positions.

The features of the first batches are kept within a bound, so that the members need not run on them again once it is
known which points match: on a small dataset, matching and moments together take one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.few_rows import WIDE, FewRows
from suture_stitching.features.moments import Moments, rows
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import Features
from suture_stitching.matching.match import similarities, similarities_of_rows
from suture_stitching.running.feature_pass import FeaturePass

#: Samples that are looked at, or as many as can be kept; and how many there are of them if none can be.
_SAMPLES, _FEWEST = 512, 64
_KEPT_BYTES = 1 << 29
#: How many features of all points together are compared, and at which positions.
_WIDTH = 4096
_GRIDS = ((), (16,), (4, 4), (1, 4, 4))


@dataclass(frozen=True)
class Survey:
    """Linear CKA `(P, P)` of all points, member after member, and features of the first batches, in parts."""

    similarities: Tensor
    known: Sequence[Sequence[Features]]


def survey(passes: FeaturePass, merge: Merge, points: Sequence[Sequence[StitchPoint]]) -> Survey:
    """Return how similar the members' `points` are on the first training batches."""
    flat = [(member, point) for member, some in enumerate(points) for point in some]
    places: dict[int, list[int]] = {}
    for index, (member, point) in enumerate(flat):
        places.setdefault(merge.point(merge.native, member, point).node, []).append(index)
    model = passes.model_of(merge, places)
    few = compared_by_rows(passes, points)
    generator = torch.Generator().manual_seed(passes.seed or 0)
    widths = sketched(points)
    sketches = [
        None if few else _sketch(point.shape[0], width, generator, passes.runner.device)
        for (_, point), width in zip(flat, widths, strict=True)
    ]
    rank = max(len(point.shape) - 1 for _, point in flat)
    kept_batches = _kept_batches(passes, points)

    def look(part: Tensor, *, keep: bool) -> tuple[list[Tensor], Features]:
        sides: list[Tensor] = [part] * len(flat)
        kept = {}
        values = passes.runner.stream(model, places, part)
        for place, feature in ((place, feature) for node, feature in values for place in places[node]):
            member, point = flat[place]
            grid = _GRIDS[len(point.shape) - 1 or rank]
            side = rows(feature, grid, point.channel_axis).float()
            sketch = sketches[place]
            sides[place] = side if sketch is None else side @ sketch
            if keep:
                kept[member, point.name] = feature
        return sides, kept

    seen: list[list[Tensor]] = []
    total = None if few else Moments.nothing(sum(widths), passes.runner.device)
    known: list[list[Features]] = []
    first = range(surveyed_batches(passes, points))
    for number, (x, _) in zip(first, passes.batches("train", first), strict=True):
        passes.tracker.tick("match")
        keep = number < kept_batches
        # What is not kept has to be computed again: no more of it than is needed.
        parts = passes.runner.parts(lambda part, keep=keep: look(part, keep=keep), x if keep else x[:_FEWEST])
        for sides, _ in parts:
            if total is None:
                seen.append(sides)
            else:
                total = total + Moments.of(torch.cat(sides, 1))
        if keep:
            known.append([features for _, features in parts])
    passes.tracker.end("match")
    if total is None:
        return Survey(_by_rows(passes, flat, seen), known)
    return Survey(_by_moments(passes, flat, widths, total), known)


def _by_rows(
    passes: FeaturePass, points: Sequence[tuple[int, StitchPoint]], seen: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Return the similarities `(P, P)` of points by products of few rows: `seen` are theirs, part after part."""
    compared = []
    for (member, point), parts_of in zip(points, zip(*seen, strict=True), strict=True):
        compared.append(FewRows.of(torch.cat(parts_of)))
        passes.check(compared[-1], [(slice(0, point.shape[0]), member, point)])
    return similarities_of_rows(compared).cpu()


def _by_moments(
    passes: FeaturePass, points: Sequence[tuple[int, StitchPoint]], widths: Sequence[int], total: Moments
) -> Tensor:
    """Return the similarities `(P, P)` of points by moments of all their features, so many of each, side by side."""
    edges = torch.tensor([0, *widths]).cumsum(0).tolist()
    passes.check(total, [(slice(edges[i], edges[i + 1]), *point) for i, point in enumerate(points)])
    return similarities(total, widths).cpu()


def compared_by_rows(passes: FeaturePass, points: Sequence[Sequence[StitchPoint]]) -> bool:
    """Whether points are compared by products of few rows: some are wide, and all are vectors."""
    flat = [point for some in points for point in some]
    vectors, widest = all(len(point.shape) == 1 for point in flat), max(point.shape[0] for point in flat)
    return vectors and widest >= WIDE and sum(surveyed_samples(passes, points)) <= _SAMPLES


def sketched(points: Sequence[Sequence[StitchPoint]]) -> list[int]:
    """Return how many features of each point are compared, member after member."""
    flat = [point for some in points for point in some]
    widest = max(8, _WIDTH // len(flat))
    return [min(point.shape[0], widest) for point in flat]


def surveyed_samples(passes: FeaturePass, points: Sequence[Sequence[StitchPoint]]) -> list[int]:
    """Return how many samples are looked at in each batch."""
    kept = _kept_batches(passes, points)
    sizes = passes.sizes("train")[: surveyed_batches(passes, points)]
    return [size if number < kept else min(size, _FEWEST) for number, size in enumerate(sizes)]


def surveyed_batches(passes: FeaturePass, points: Sequence[Sequence[StitchPoint]]) -> int:
    """Return how many batches are looked at."""
    kept = min(_kept_batches(passes, points), -(-_SAMPLES // passes.batch))
    return min(passes.number_of_batches("train"), max(kept, -(-_FEWEST // passes.batch)))


def _kept_batches(passes: FeaturePass, points: Sequence[Sequence[StitchPoint]]) -> int:
    numbers = sum(prod(point.shape) for some in points for point in some)
    return _KEPT_BYTES // (4 * numbers * passes.batch)


def _sketch(width: int, widest: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """Return a random projection to `widest` channels for more than that; similarities survive it approximately."""
    if width <= widest:
        return None
    sketch: Tensor = torch.randn(width, widest, generator=generator) / widest**0.5
    return sketch.to(device)
