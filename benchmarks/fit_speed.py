"""Closed form against gradient descent on feature error, at all pairs: `python benchmarks/fit_speed.py`.

Both fit the same stitches between the same trained networks on the same data in the same run: two classifiers of
digits with 17 matched points, and two U-Nets. The usual recipe trains all stitches side by side on the error of the
features (AdamW, learning rate 1e-2, cosine schedule, 16,384 samples); the closed form reads the party's 512 images
once. It must be at least 20 times faster, and explain at least as much (to 0.001) of the features of held-out images
at every single pair. Its time grows with the number of images, that of the recipe does not: with more they come closer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from common import median_ratio, timed, write_json
from networks import as_member, classifiers, unets
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member
from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.moments import Moments, rows, to_grid
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.reading import MatchReader, columns
from suture_stitching.fitting.solve import Source, explained_variance
from suture_stitching.fitting.terms import PatientTerms
from suture_stitching.objectives import objective_of
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.device import Runner
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.progress import ignore
from suture_stitching.running.tracker import Tracker, UnitCost

FASTER, SAMPLES, RATE = 20.0, 16_384, 1e-2
#: Explained variances that differ by no more are equal: the next digits are those of the held-out images.
EQUAL = 1e-3
#: A match, the member that a stitch reads and the one it writes for.
Pair: TypeAlias = tuple[int, int, int]
Stitches: TypeAlias = dict[Pair, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Two members and their matched points, as one model that gives the features at all of them."""

    members: Sequence[Member]
    groups: Sequence[Mapping[int, StitchPoint]]
    dataset: ArrayDataset
    merge: Merge
    model: PortableModel
    device: str

    @property
    def pairs(self) -> list[Pair]:
        return [(index, source, 1 - source) for index in range(len(self.groups)) for source in (0, 1)]

    def features(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return by match both members' features."""
        with torch.no_grad():
            found = self.model(x.to(self.device))
        return list(zip(found[::2], found[1::2], strict=True))


def prepare(nets: Sequence[nn.Module], dataset: ArrayDataset, device: str) -> Task:
    members = [as_member(net, dataset, f"m{index}", index) for index, net in enumerate(nets)]
    points = [_blocks(member.points(dataset.input_shape)) for member in members]
    groups = [dict(enumerate(pair)) for pair in zip(*points, strict=True)]
    merge = Merge(members, objective_of([member.metadata for member in members], dataset.labels))
    refs = tuple(merge.point(merge.native, m, point) for group in groups for m, point in group.items())
    return Task(members, groups, dataset, merge, PortableModel(merge.graph(refs), merge.tensors).to(device), device)


def _blocks(points: Sequence[StitchPoint]) -> list[StitchPoint]:
    """Leave out what lies inside residual blocks."""
    inside = (".first", ".second", ".shortcut")
    return [point for point in points if not any(part in point.module for part in inside)]


def closed_form(task: Task) -> Stitches:
    tracker, runner = Tracker(ignore), Runner(task.device, "float32")
    tracker.expect("solve", [UnitCost()])
    passes = FeaturePass(task.members, task.dataset, runner, tracker, Checkpoint(None, ""), seed=0)
    reading = MatchReader(passes, task.merge, task.groups, (), PatientTerms(least=1)).read()
    found = {}
    for index, source, target in task.pairs:
        own = columns(task.groups[index])
        train, held_out = reading.pair(index, task.groups[index][target].shape[1:])
        solution = Source(train, own[source], held_out).to(own[target])
        found[index, source, target] = (solution.weight.float(), solution.bias.float())
    return found


def gradient_descent(task: Task, samples: int, batch: int) -> Stitches:
    torch.manual_seed(0)
    layers = nn.ModuleList(
        _layer(task.groups[index][source], task.groups[index][target]) for index, source, target in task.pairs
    ).to(task.device)
    steps = samples // batch
    optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, x in zip(range(steps), _endless(task.dataset, batch), strict=False):
        features = task.features(x)
        error = torch.zeros((), device=task.device)
        for (index, source, target), layer in zip(task.pairs, layers, strict=True):
            wanted = features[index][target]
            error = error + F.mse_loss(layer(to_grid(features[index][source], wanted.shape[2:])), wanted)
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {
        pair: (layer.weight.detach().flatten(1), layer.bias.detach())
        for pair, layer in zip(task.pairs, layers, strict=True)
    }


def _layer(source: StitchPoint, target: StitchPoint) -> nn.Module:
    inputs, outputs = source.shape[0], target.shape[0]
    return nn.Conv2d(inputs, outputs, 1) if len(target.shape) == 3 else nn.Linear(inputs, outputs)


def _endless(dataset: ArrayDataset, batch: int) -> Iterator[Tensor]:
    epoch = 0
    while True:
        for x, _ in dataset.batches("train", batch, seed=epoch):
            if len(x) == batch:
                yield x
        epoch += 1


def held_out_r2(task: Task, *fits: Stitches) -> list[dict[Pair, float]]:
    """Return the explained variance of each fit at each pair, over all positions of the `test` split."""
    totals: dict[Pair, Moments] = {}
    for x, _ in task.dataset.batches("test", 128):
        features = task.features(x)
        for index, source, target in task.pairs:
            grid = features[index][target].shape[2:]
            found = Moments.of(torch.cat([rows(features[index][m], grid) for m in (source, target)], 1))
            before = totals.get((index, source, target))
            totals[index, source, target] = found if before is None else before + found
    result = []
    for fit in fits:
        scores = {}
        for pair, (weight, bias) in fit.items():
            width = weight.shape[1]
            columns = slice(0, width), slice(width, None)
            scores[pair] = explained_variance(totals[pair], *columns, weight.double(), bias.double())
        result.append(scores)
    return result


def measure(task: Task, samples: int, batch: int, rounds: int) -> dict[str, Any]:
    fits: dict[str, Stitches] = {}
    times: dict[str, list[float]] = {"closed form": [], "gradient descent": []}
    closed_form(task)  # what is slow the first time is not counted
    for _ in range(rounds):
        for name, work in (
            ("closed form", lambda: closed_form(task)),
            ("gradient descent", lambda: gradient_descent(task, samples, batch)),
        ):
            times[name].append(timed(lambda name=name, work=work: fits.update({name: work()}), device=task.device))  # type: ignore[misc]
    ours, theirs = held_out_r2(task, fits["closed form"], fits["gradient descent"])
    gains = [ours[pair] - theirs[pair] for pair in task.pairs]
    return {
        "matches": len(task.groups),
        "pairs": len(task.pairs),
        "samples read by the closed form": sum(task.dataset.n(split) for split in ("train", "validation")),
        **{f"{name}, s": statistics.median(seconds) for name, seconds in times.items()},
        "times faster": median_ratio(times, "gradient descent", "closed form"),
        "mean R2, closed form": statistics.mean(ours.values()),
        "mean R2, gradient descent": statistics.mean(theirs.values()),
        "least gain of R2": min(gains),
        "pairs ahead": sum(gain > 0 for gain in gains),
        "pairs behind": sum(gain < -EQUAL for gain in gains),
        "by pair": [
            {
                "points": [task.groups[index][m].module for m in (source, target)],
                "closed form": ours[index, source, target],
                "gradient descent": theirs[index, source, target],
            }
            for index, source, target in task.pairs
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="of the party, to fit on")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="that gradient descent sees, over all epochs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="an eighth of the samples; only the quality is asserted")
    parser.add_argument("--json", type=Path, default=Path("fit_speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples = options.samples // 8 if options.quick else options.samples
    steps = 60 if options.quick else 200
    torch.manual_seed(0)
    found = {}
    n = round(options.images / 0.7)  # three tenths are held out
    for name, make in (("classifiers", classifiers), ("U-Nets", unets)):
        nets, dataset = make(options.size, n=n, steps=steps)
        task = prepare(nets, dataset, options.device)
        found[name] = measure(task, samples, options.batch, options.rounds)
    table = Table("", *found, title=f"all pairs, {options.images} images; gradient descent on {samples:,} samples")
    for quantity in next(iter(found.values())):
        if quantity != "by pair":
            table.add_row(quantity, *(f"{float(row[quantity]):.5g}" for row in found.values()))
    Console().print(table)
    missed = [f"{name}: {row['pairs behind']} pairs explain less" for name, row in found.items() if row["pairs behind"]]
    if not options.quick:
        missed += [f"{name}: not {FASTER:g} x faster" for name, row in found.items() if row["times faster"] < FASTER]
    write_json(
        options.json,
        "fit_speed",
        {"cases": found, "missed": missed},
        device=options.device,
        images=options.images,
        size=options.size,
        samples=samples,
        batch=options.batch,
        learning_rate=RATE,
        training_steps=steps,
        rounds=options.rounds,
        seed=0,
    )
    if missed:
        raise SystemExit("; ".join(missed))


if __name__ == "__main__":
    main()
