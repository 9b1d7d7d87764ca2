"""How the cost of a fit grows: `python benchmarks/scaling.py`.

Seconds of a fit in closed form against the number of samples, the width of the networks and the number of members,
and of an evaluation against the number of candidates; with the exponent of a power law through the points (1: in
proportion). Widths are also compared with what one plain pass of the members costs, which grows with them as well.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import timed, write_json
from networks import DIGITS, PlainCNN, ResNet, as_member, digits
from rich.console import Console
from rich.table import Table
from torch import nn

from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member, batches
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, fit

CLOSED_FORM = FitOptions(refine=False)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log(seconds) over log(sizes), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def networks(count: int, width: int) -> list[nn.Module]:
    """Return untrained networks, plain and residual in turn: what they compute does not change what it costs."""
    torch.manual_seed(0)
    widths = [width << stage for stage in range(4)]
    made = [PlainCNN(widths=widths) if k % 2 == 0 else ResNet(widths=widths) for k in range(count)]
    return [net.eval() for net in made]


def data(samples: int, size: int) -> ArrayDataset:
    """Return digits that occur again where more are wanted than there are."""
    images, labels = digits(size)
    index = np.arange(samples) % len(images)
    return ArrayDataset(images[index], labels[index], DIGITS, where="digits")


def members_of(nets: Sequence[nn.Module], dataset: ArrayDataset) -> list[Member]:
    return [as_member(net, dataset, f"m{index}", index) for index, net in enumerate(nets)]


def series(sizes: Iterable[int], work: Callable[[int], Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Return seconds by size and their exponent; `work` prepares what is then timed, in turns over all sizes."""
    prepared = {size: work(size) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in prepared}
    for _ in range(rounds):
        for size, run in prepared.items():
            times[size].append(timed(run))
    seconds = {size: statistics.median(found) for size, found in times.items()}
    return {"seconds": seconds, "exponent": exponent(list(seconds), list(seconds.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="images of 16 x 16, one round")
    parser.add_argument("--json", type=Path, default=Path("scaling.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rounds = (16, 1) if options.quick else (options.size, options.rounds)
    base = data(256, size)

    def by_samples(samples: int) -> Callable[[], object]:
        dataset = data(samples, size)
        members = members_of(networks(2, 8), dataset)
        return lambda: fit(members, dataset, own=0, options=CLOSED_FORM)

    def by_width(width: int) -> Callable[[], object]:
        members = members_of(networks(2, width), base)
        return lambda: fit(members, base, own=0, options=CLOSED_FORM)

    def plain_by_width(width: int) -> Callable[[], object]:
        nets = networks(2, width)
        members = members_of(nets, base)

        def run() -> None:
            with torch.no_grad():
                for split in ("train", "validation"):
                    for x, _ in batches(members, base, split, "cpu"):  # type: ignore[arg-type]
                        for net in nets:
                            net(x)

        return run

    def by_members(count: int) -> Callable[[], object]:
        members = members_of(networks(count, 8), base)
        return lambda: fit(members, base, own=0, options=CLOSED_FORM)

    # Mixing weights at every match make many candidates of one fit; the first ones of them are evaluated.
    alphas = FitOptions(refine=False, alphas=tuple(k / 9 for k in range(1, 9)))
    members = members_of(networks(2, 8), base)
    everything = fit(members, base, own=0, options=alphas)

    def by_candidates(count: int) -> Callable[[], object]:
        candidates = everything.candidates
        some = candidates.model_copy(update={"candidates": candidates.candidates[:count]})
        fitted = type(everything)(some, everything.stitches, everything.input_shape)
        return lambda: evaluate(members, fitted, base)

    most = len(everything.candidates.candidates)
    found = {
        "fit, samples": series((256, 512, 1024, 2048), by_samples, rounds),
        "fit, width of the first layer": series((4, 8, 16, 32), by_width, rounds),
        "plain pass, width of the first layer": series((4, 8, 16, 32), plain_by_width, rounds),
        "fit, members": series((2, 3, 4), by_members, rounds),
        "evaluation, candidates": series([n for n in (3, 6, 12, 24, 48) if n <= most], by_candidates, rounds),
    }
    table = Table("seconds of ... by ...", "", "exponent", title=f"images of {size} x {size}")
    for name, row in found.items():
        cells = ", ".join(f"{key}: {seconds:.2f}" for key, seconds in row["seconds"].items())
        table.add_row(name, cells, f"{row['exponent']:.2f}")
    Console().print(table)
    write_json(options.json, "scaling", found, size=size, rounds=rounds, seed=0)


if __name__ == "__main__":
    main()
