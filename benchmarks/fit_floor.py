"""What a fit costs beside running the members once: `python benchmarks/fit_floor.py`.

Capture, matching and closed form of all pairs may take 1.5 times one plain inference pass of both members over the
same data; evaluating all candidates 2.5 times one pass; and peak memory may not depend on the number of samples.
Members are residual classifiers of digits and U-Nets of drawn lesions; what three members cost is shown beside them, of
which only the evaluation is limited. Ends with an error where a limit is missed.

`--wide` measures layers of 512 to 4,096 features instead: capture, matching and closed form may take twice a pass, and
each row is printed as it is measured, with what the products and decompositions take alone that no fit does without.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import timed, write_json
from networks import LESION, ResNet, UNet, as_member, classifiers, lesions, unets
from rich.console import Console
from rich.table import Table
from torch import nn

from suture_contract.documents import SplitName
from suture_stitching.data import ArrayDataset, Dataset, Split
from suture_stitching.ensemble.members import Member, batches
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, fit
from suture_stitching.running.progress import Progress

CAPTURE, EVALUATE, MEMORY = 1.5, 2.5, 1.1
#: What capture, matching and closed form may take for wide layers, in passes; the widths, and when no more are begun.
WIDE, WIDTHS, SECONDS = 2.0, (512, 1024, 2048, 4096), 200.0
#: What a fit reports while it runs the members, matches their points and solves.
STEPS = ("start", "match", "solve", "stitch")
#: Samples that layers are compared on.
SURVEYED = 512


class Phases:
    """The seconds that each step of a fit takes, by its own progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step, self._since = "start", time.perf_counter()
        self._began = self._since
        self._said: list[tuple[float, float]] = []

    @property
    def estimated(self) -> float:
        """What was said to be left after a tenth of the work, relative to what was left."""
        tenth = self._began + 0.1 * (self._since - self._began)
        after = [(moment, said) for moment, said in self._said if moment >= tenth]
        return after[0][1] / max(self._since - after[0][0], 1e-9) if after else float("nan")

    def __call__(self, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.seconds_left is not None:
            self._said.append((now, progress.seconds_left))
        self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self._since
        self._step, self._since = progress.step, now


def plain_pass(nets: Sequence[nn.Module], members: Sequence[Member], dataset: Dataset, splits: Sequence[Split]) -> None:
    with torch.no_grad():
        for split in splits:
            for x, _ in batches(members, dataset, split, "cpu"):
                for net in nets:
                    net(x)


def fitted_in(members: Sequence[Member], dataset: Dataset, phases: Phases) -> FitResult:
    # Few steps of refinement: how many there are does not change which candidates there are.
    return fit(members, dataset, own=0, options=FitOptions(refine_steps=2), progress=phases)


def measure(nets: Sequence[nn.Module], dataset: ArrayDataset, rounds: int) -> dict[str, Any]:
    members = [as_member(net, dataset, f"m{index}", index) for index, net in enumerate(nets)]
    plain_pass(nets, members, dataset, ("validation",))
    found: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    for _ in range(rounds):
        plain = timed(lambda: plain_pass(nets, members, dataset, ("train", "validation")))
        phases = Phases()
        fitted = fitted_in(members, dataset, phases)
        for name, seconds in phases.seconds.items():
            steps.setdefault(name, []).append(seconds / plain)
        found.setdefault("pass over train and validation, s", []).append(plain)
        found.setdefault("capture, match, solve", []).append(sum(phases.seconds.get(step, 0) for step in STEPS) / plain)
        found.setdefault("evaluate all candidates", []).append(evaluation(nets, members, fitted, dataset))
    return {
        "candidates": len(fitted.candidates.candidates),
        "matches": len({str(c.matches[0].points) for c in fitted.candidates.candidates if c.matches}),
        **{name: statistics.median(values) for name, values in found.items()},
        "steps": {name: statistics.median(values) for name, values in steps.items()},
    }


def evaluation(nets: Sequence[nn.Module], members: Sequence[Member], fitted: FitResult, dataset: ArrayDataset) -> float:
    """Return how many times a plain pass the evaluation takes."""
    splits: tuple[SplitName, SplitName] = ("validation", "test")
    one = timed(lambda: plain_pass(nets, members, dataset, splits))
    return timed(lambda: evaluate(members, fitted, dataset, splits=splits)) / one


def case(name: str, size: int, samples: int, steps: int) -> tuple[list[nn.Module], ArrayDataset]:
    torch.manual_seed(0)
    if name == "U-Nets":
        return unets(size, n=samples, steps=steps)
    nets = [ResNet(), ResNet(widths=(24, 48, 96, 128), blocks=(1, 2, 2, 1))]
    if name == "three ResNets":
        nets.append(ResNet(widths=(12, 24, 48, 96), blocks=(2, 3, 2, 2)))
    return classifiers(size, n=samples, steps=steps, nets=nets)


def wide_nets(width: int) -> tuple[list[nn.Module], ArrayDataset]:
    """Return two networks of three layers of so many features, for tables of 64 numbers that say their class."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1536, 64)).astype(np.float32)
    y = (x[:, :10] + 0.3 * rng.normal(size=(1536, 10))).argmax(1)
    torch.manual_seed(0)
    nets: list[nn.Module] = []
    for own in (width, width):
        layers = [nn.Linear(64, own), nn.ReLU(), nn.Linear(own, own), nn.ReLU(), nn.Linear(own, own), nn.ReLU()]
        nets.append(nn.Sequential(*layers, nn.Linear(own, 10)).eval())
    names = [f"v{number}" for number in range(64)]
    return nets, ArrayDataset(x, y, [str(label) for label in range(10)], channels=names, where="table")


def least(width: int, dataset: Dataset) -> float:
    """Return the seconds of what no fit of wide layers does without, beside a pass: its products and decompositions.

    These are similarities of six points, directions of four, both ends of two stitches along them, and the stitches.
    """
    rows, seen = torch.randn(dataset.n("train"), width), torch.randn(min(dataset.n("train"), SURVEYED), width)
    side = rows if len(rows) <= width else rows.T
    square = side @ side.T
    vectors = torch.randn(len(rows), len(square))
    along = vectors.T @ rows
    # Half of what is symmetric.
    parts: tuple[tuple[float, Callable[[], Any]], ...] = (
        (6 / 2, lambda: seen @ seen.T),
        (4 / 2, lambda: side @ side.T),
        (4, lambda: torch.linalg.eigh(square)),
        (4, lambda: vectors.T @ rows),
        (2, lambda: along.T @ along),
    )
    return sum(times * min(timed(part) for _ in range(2)) for times, part in parts)


def wide(widths: Sequence[int], seconds: float, path: Path) -> None:
    """Measure fits of wide layers, one after the other, and end with an error where one takes too long."""
    began, rows, missed = time.perf_counter(), {}, []
    print(
        f"{'features':>8} {'pass, s':>8} {'passes':>7} {'at least':>9} {'held-out R2':>12} {'left after a tenth':>19}",
        flush=True,
    )
    for width in widths:
        if time.perf_counter() - began > seconds:
            print(f"{width:>8} not begun: {seconds:.0f} seconds are over", flush=True)
            continue
        nets, dataset = wide_nets(width)
        members = [as_member(net, dataset, f"m{index}", index) for index, net in enumerate(nets)]
        plain_pass(nets, members, dataset, ("validation",))
        once = functools.partial(plain_pass, nets, members, dataset, ("train", "validation"))
        plain = min(timed(once) for _ in range(2))
        phases = Phases()
        fitted = fit(members, dataset, own=0, options=FitOptions(refine=False), progress=phases)
        took = sum(phases.seconds.get(step, 0) for step in STEPS)
        matches = [match for candidate in fitted.candidates.candidates for match in candidate.matches]
        r2 = max((stitch.r2 or 0.0 for match in matches for stitch in match.stitches), default=0.0)
        rows[width] = {
            "pass_s": plain,
            "passes": took / plain,
            "least": (floor := 1 + least(width, dataset) / plain),
            "r2": r2,
            "estimate": phases.estimated,
            "steps": {name: value / plain for name, value in phases.seconds.items()},
        }
        print(
            f"{width:>8} {plain:>8.2f} {took / plain:>7.2f} {floor:>9.2f} {r2:>12.3f} {phases.estimated:>19.2f}",
            flush=True,
        )
        missed += [f"{width} features"] if took / plain > WIDE else []
    write_json(path, "fit_floor_wide", {"widths": rows, "missed": missed}, seed=0)
    if missed:
        raise SystemExit(f"over {WIDE:g} passes: {', '.join(missed)}")


def peak_memory(samples: int) -> float:
    """Return the peak resident memory in MB of a process that fits and evaluates with so many samples."""
    process = subprocess.Popen([sys.executable, __file__, "--fit-only", str(samples)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the fit of {samples} samples failed")
    return usage.ru_maxrss / 1024


def fit_only(samples: int) -> None:
    """Fit on 64 images that occur again and again, so that only what reads them can need more memory for more."""
    images, masks = lesions(64, 32)
    index = np.arange(samples)
    parts = {"train": index[: samples // 2], "validation": index[samples // 2 : -samples // 4]}
    split = {name: part % len(images) for name, part in {**parts, "test": index[-samples // 4 :]}.items()}
    dataset = ArrayDataset(images, masks, LESION, task="segmentation", split=split)
    torch.manual_seed(0)
    nets = (UNet(width=8), UNet(width=12, norm=nn.InstanceNorm2d))
    members = [as_member(net.eval(), dataset, f"m{index}", index) for index, net in enumerate(nets)]
    evaluate(members, fitted_in(members, dataset, Phases()), dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="128 samples, one round")
    parser.add_argument("--json", type=Path, default=Path("fit_floor.json"))
    parser.add_argument("--wide", action="store_true", help="layers of 512 to 4,096 features")
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="these instead, with --wide")
    parser.add_argument("--fit-only", type=int, metavar="SAMPLES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.fit_only:
        fit_only(options.fit_only)
        return
    if options.wide:
        wide(options.widths, SECONDS, options.json)
        return
    samples, rounds = (128, 1) if options.quick else (options.samples, options.rounds)
    rows = {}
    for name in ("ResNets", "three ResNets", "U-Nets"):
        nets, dataset = case(name, options.size, samples, steps=20)
        rows[name] = measure(nets, dataset, rounds)
    few, many = 512, 1024 if options.quick else 4096  # both fill a batch
    memory = {n: peak_memory(n) for n in (few, many)}
    growth = memory[many] / memory[few]

    missed = []
    table = Table("", "allowed", *rows, title=f"{samples} samples of {options.size} x {options.size}")
    for quantity, allowed in (("capture, match, solve", CAPTURE), ("evaluate all candidates", EVALUATE)):
        table.add_row(quantity, f"{allowed:.2f} x", *(f"{row[quantity]:.2f} x" for row in rows.values()))
        # With three members there are six stitches at a match instead of two: that cost is shown, not limited.
        limited = [name for name in rows if name != "three ResNets" or allowed == EVALUATE]
        missed += [f"{name}: {quantity}" for name in limited if rows[name][quantity] > allowed]
    table.add_section()
    for quantity in ("candidates", "matches", "pass over train and validation, s"):
        table.add_row(quantity, "", *(f"{row[quantity]:.3g}" for row in rows.values()))
    for step in dict.fromkeys(step for row in rows.values() for step in row["steps"]):
        table.add_row(f"  fit: {step}", "", *(f"{row['steps'].get(step, 0):.2f} x" for row in rows.values()))
    table.add_section()
    table.add_row("peak memory, U-Nets", f"{MEMORY:.2f} x", "", "", f"{growth:.2f} x")
    table.add_row("", "", "", "", f"{memory[few]:.0f} MB for {few}, {memory[many]:.0f} MB for {many} samples")
    Console().print(table)
    missed += ["peak memory"] if growth > MEMORY else []
    write_json(
        options.json,
        "fit_floor",
        {"cases": rows, "peak_memory_mb": memory, "missed": missed},
        size=options.size,
        samples=samples,
        rounds=rounds,
        seed=0,
    )
    if missed:
        raise SystemExit(f"over the limit: {', '.join(missed)}")


if __name__ == "__main__":
    main()
