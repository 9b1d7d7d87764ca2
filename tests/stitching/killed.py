"""Fits and evaluates in processes that are killed: `python -m tests.stitching.killed FOLDER EXPORTED`.

EXPORTED holds the networks (see `networks.keep_exported`). Writes what uninterrupted work gives to FOLDER/whole and
what killed and restarted work gives to FOLDER/resumed, and prints as JSON how often which of the two was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tests.stitching.networks import dataset, deep, member, plain, take_exported

from suture_stitching.ensemble import members
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, fit
from suture_stitching.running import checkpoint
from suture_stitching.running.progress import Progress, ignore

OPTIONS = FitOptions(refine_steps=12, refine_candidates=3, max_matches=3)
#: The work is killed when it first reports this share of a step, and then after random times.
POINTS = [
    ("match", 0),
    ("solve", 0),
    ("solve", 0.5),
    ("solve", 1),
    ("stitch", 1),
    ("double", 0.5),
    ("refine", 0.1),
    ("refine", 0.5),
]
RANDOM = 3


def main(folder: Path, exported: Path) -> None:
    torch.set_num_threads(1)  # so that processes can be forked from this one
    members._LARGEST_BATCH = 16
    checkpoint.SECONDS, checkpoint._WRITING_SHARE = 0.0, float("inf")
    take_exported(exported)
    pair = [member(plain(), folder, seed=1), member(deep(), folder, "south/net", seed=2)]

    def work(out: Path, kept: Path | None, progress: Callable[[Progress], None]) -> None:
        fit(pair, dataset(), own=0, options=OPTIONS, progress=progress, checkpoint=kept).save(out)

    def score(out: Path, kept: Path | None, progress: Callable[[Progress], None]) -> None:
        fitted = FitResult.load(out)
        found = evaluate(pair, fitted, dataset(), own=0, progress=progress, checkpoint=kept)
        (out / "evaluation.json").write_text(found.model_dump_json())

    whole, resumed = folder / "whole", folder / "resumed"
    for out in (whole, resumed, folder / "counted"):
        out.mkdir()
    units: dict[str, int] = {}
    work(folder / "counted", None, lambda progress: units.__setitem__(progress.step, progress.total))
    run(lambda: (work(whole, None, ignore), score(whole, None, ignore)), None)
    kills = {"fit": 0, "evaluate": 0}
    rng = random.Random(0)
    points = [(step, max(1, round(share * units[step]))) for step, share in POINTS]
    for point in [*points, *[None] * RANDOM]:
        kills["fit"] += run(
            lambda point=point: work(resumed, folder / "fit", killing(point)), None if point else rng.uniform(0.1, 1.0)
        )
    run(lambda: work(resumed, folder / "fit", ignore), None)
    for point in [("evaluate", 1), ("evaluate", 3)]:
        kills["evaluate"] += run(lambda point=point: score(resumed, folder / "evaluate", killing(point)), None)
    run(lambda: score(resumed, folder / "evaluate", ignore), None)
    print(json.dumps(kills))


def killing(point: tuple[str, int] | None) -> Callable[[Progress], None]:
    def progress(progress: Progress) -> None:
        if point is not None and progress.step == point[0] and progress.done >= point[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def run(task: Callable[[], object], seconds: float | None) -> bool:
    """Run `task` in a process of its own, killed after `seconds` if given; return whether it was killed."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"the work failed with {status}")
    return status != 0


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
