"""What all benchmarks share: where they ran, how they write what they found, and times that are fair to compare."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from suture_contract.files import replacing
from suture_stitching.evaluation.bootstrap import RESAMPLED_FROM, student


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what figures depend on: processor, cores, threads, device and versions."""
    device = torch.device(device)
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "suture": version("suture"),
    }


def write_json(
    path: str | os.PathLike[str], name: str, results: Any, *, device: str | torch.device = "cpu", **settings: Any
) -> None:
    """Write what the benchmark `name` found to `path`, with its settings (seeds among them), machine and time."""
    document = {
        "benchmark": name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "settings": settings,
        "results": results,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")


def over_seeds(values: Any) -> tuple[float, float, float]:
    """Return the mean of a value per seed `(seeds,)`, two seeds at least, and the ends of its 95 % interval.

    By Student's t, as the reports do for few patients.
    """
    own = np.asarray(values, dtype=np.float64)
    half = student(min(len(own), RESAMPLED_FROM - 1)) * own.std(ddof=1) / len(own) ** 0.5
    return float(own.mean()), float(own.mean() - half), float(own.mean() + half)


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    device: str | torch.device = "cpu",
) -> dict[str, list[float]]:
    """Return the seconds that each of `works` took in each round, after `warm_up` rounds that do not count.

    The works take turns, so that whatever else the machine does meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warm_up, rounds):
        for name, work in works.items():
            seconds = timed(work, device=device)
            if number >= 0:
                times[name].append(seconds)
    return times


def timed(work: Callable[[], object], *, device: str | torch.device = "cpu") -> float:
    """Return the seconds that `work` takes, with all it started on `device`."""
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def median_ratio(times: Mapping[str, list[float]], above: str, *below: str) -> float:
    """Return the median over rounds of the time of `above` divided by the sum of those of `below`."""
    lower = [sum(round_) for round_ in zip(*(times[name] for name in below), strict=True)]
    return statistics.median(over / under for over, under in zip(times[above], lower, strict=True))


def _synchronise(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
