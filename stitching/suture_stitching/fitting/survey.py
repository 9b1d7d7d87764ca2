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

from suture_contract.model.graph import Ref
from suture_stitching.ensemble.members import batch_size, number_of_batches
from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.moments import Moments, rows
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import Features, Reader
from suture_stitching.matching.match import similarities
from suture_stitching.running.tracker import Tracker

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


def survey(reader: Reader, merge: Merge, points: Sequence[Sequence[StitchPoint]], tracker: Tracker) -> Survey:
    """Return how similar the members' `points` are on the first training batches."""
    flat = [(member, point) for member, own in enumerate(points) for point in own]
    places = {merge.point(merge.native, member, point).node: i for i, (member, point) in enumerate(flat)}
    model = reader.runner.model(merge.graph(tuple(map(Ref, places))), merge.tensors, reader.shape)
    widest = max(8, _WIDTH // len(flat))
    generator = torch.Generator().manual_seed(reader.seed)
    sketches = [_sketch(point.shape[0], widest, generator, reader.runner.device) for _, point in flat]
    rank = max(len(point.shape) - 1 for _, point in flat)
    kept_batches = _kept_batches(reader, points)

    def look(part: Tensor, *, keep: bool) -> tuple[Moments, Features]:
        found: list[Tensor] = [part] * len(flat)
        kept = {}
        for node, feature in reader.runner.stream(model, places, part):
            place = places[node]
            member, point = flat[place]
            grid = _GRIDS[len(point.shape) - 1 or rank]
            side = rows(feature, grid, point.channel_axis).float()
            sketch = sketches[place]
            found[place] = side if sketch is None else side @ sketch
            if keep:
                kept[member, point.name] = feature
        return Moments.of(torch.cat(found, 1)), kept

    widths = [min(point.shape[0], widest) for _, point in flat]
    total = Moments.nothing(sum(widths), reader.runner.device)
    known: list[list[Features]] = []
    for number, x in zip(range(surveyed_batches(reader, points)), reader.batches("train"), strict=False):
        tracker.tick("match")
        keep = number < kept_batches
        # What is not kept has to be computed again: no more of it than is needed.
        parts = reader.runner.parts(lambda part, keep=keep: look(part, keep=keep), x if keep else x[:_FEWEST])
        for moments, _ in parts:
            total = total + moments
        if keep:
            known.append([features for _, features in parts])
    tracker.end("match")
    edges = torch.tensor([0, *widths]).cumsum(0).tolist()
    reader.check(total, [(slice(edges[i], edges[i + 1]), *one) for i, one in enumerate(flat)])
    return Survey(similarities(total, widths).cpu(), known)


def surveyed_batches(reader: Reader, points: Sequence[Sequence[StitchPoint]]) -> int:
    """Return how many batches are looked at."""
    size = batch_size(reader.dataset, reader.shape)
    kept = min(_kept_batches(reader, points), -(-_SAMPLES // size))
    return min(number_of_batches(reader.dataset, "train", reader.shape), max(kept, -(-_FEWEST // size)))


def _kept_batches(reader: Reader, points: Sequence[Sequence[StitchPoint]]) -> int:
    numbers = sum(prod(point.shape) for own in points for point in own)
    return _KEPT_BYTES // (4 * numbers * batch_size(reader.dataset, reader.shape))


def _sketch(width: int, widest: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """Return a random projection to `widest` channels for more than that; similarities survive it approximately."""
    if width <= widest:
        return None
    sketch: Tensor = torch.randn(width, widest, generator=generator) / widest**0.5
    return sketch.to(device)
