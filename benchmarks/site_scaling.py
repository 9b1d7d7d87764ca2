"""What a second worker brings a site: `python benchmarks/site_scaling.py`.

A fit and an evaluation by one Celery worker and by two, each pinned to a core of its own and computing with one thread,
with Redis and task folders as on a site, but no hub. Wall clock is only fair on a machine that does nothing else.
Processor seconds are fair anywhere: of every child the workers start, and along the critical path, which is the longest
share of each step after another: what the wall clock would show if nothing else ran. Of that, the part that is divided
is what several workers do at once; the rest, one of them does before and after. All results must be the same to 1e-10;
in fact they have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import write_json
from networks import DIGITS, PlainCNN, ResNet, digits
from safetensors.torch import load
from torch import nn

from suture_contract.kinds import CANDIDATES, STITCHES
from suture_stitching.portable.export import export
from suture_worker import broker
from suture_worker.capacity import places
from suture_worker.compute.celery_app import make_app, ring
from suture_worker.compute.forkserver import NAME
from suture_worker.compute.shards import steps
from suture_worker.config import SiteConfig, load_site, prepare_state
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask

SITE = """\
[hub]
url = "http://127.0.0.1:9"
[site]
state = "state"
device = "cpu"
[limits]
threads = 1
divide_seconds = {divide}
[datasets.digits]
path = "digits.npz"
format = "npz"
labels = {labels}
"""
_SECONDS = 3600.0
_TICK = 0.05


class Site:
    """A site with `workers` pinned workers in `folder`, where data and models lie already."""

    def __init__(self, folder: Path, cores: Sequence[int]) -> None:
        self.config: SiteConfig = load_site(folder / "site.toml")
        prepare_state(self.config)
        self._cores = cores
        self._app = make_app(self.config)

    @contextmanager
    def running(self) -> Iterator[None]:
        log = self.config.state / "logs" / "all.log"
        with log.open("ab") as output:
            commands = [broker.redis_command(self.config)]
            worker = [sys.executable, "-m", "suture_worker", "worker", str(self.config.path), str(os.getpid())]
            commands += [["taskset", "--cpu-list", str(core), *worker] for core in self._cores]
            started = []
            try:
                for command in commands:
                    started.append(subprocess.Popen(command, stdout=output, stderr=output))
                wait(lambda: _offered(self.config) == len(self._cores))
                wait(lambda: log.read_text(encoding="utf-8").count("ready.") >= len(self._cores))
                yield
            finally:
                for process in reversed(started):
                    process.terminate()
                    process.wait(30)

    def do(self, task: dict[str, Any], models: Sequence[Path], candidates: Path | None) -> dict[str, Any]:
        """Have a task done; return what it took, and the folder of its results."""
        folder = TaskFolder(self.config.state / "tasks", task["id"])
        folder.create(Assignment(task=LeasedTask.parse(task), dataset="digits"))
        folder.note_terms(Terms(min_samples=11, trusted=()))
        for index, path in enumerate(models):
            folder.member(index).hardlink_to(path)
        for name in (CANDIDATES, STITCHES) if candidates else ():
            (folder.candidates / name).write_bytes((candidates / name).read_bytes())
        meter = Meter(folder)
        started = time.monotonic()
        ring(self._app, folder.id)
        wait(lambda: folder.outcome)
        seconds = time.monotonic() - started
        children = meter.stop()
        outcome = folder.outcome
        assert outcome is not None
        if outcome.state != "done":
            raise SystemExit(f"{task['kind']}: {outcome}; see {self.config.state}")
        wait(lambda: not folder.busy)
        return {
            "wall_seconds": seconds,
            "cpu_seconds": sum(cpu for _, _, cpu in children),
            "critical_path_cpu_seconds": critical_path(children),
            "children": [{"step": step, "core": core, "cpu_seconds": cpu} for step, core, cpu in children],
            "results": folder.results,
        }


class Meter(threading.Thread):
    """Notes the processor time of every child that works on a task."""

    def __init__(self, folder: TaskFolder) -> None:
        super().__init__(daemon=True)
        self._folder, self._ended = folder, threading.Event()
        self._found: dict[int, tuple[str, int, float]] = {}
        self.start()

    def run(self) -> None:
        while not self._ended.wait(_TICK):
            for process in psutil.process_iter(["name", "cwd"]):
                at = Path(process.info["cwd"] or "/")
                if process.info["name"] == NAME and at.is_relative_to(self._folder.path):
                    try:
                        times, core = process.cpu_times(), process.cpu_affinity()[0]
                    except psutil.Error:
                        continue
                    number = at.parent.name.partition(".")[0]
                    step = steps(self._folder.assignment.task)[int(number)] if "shares" in at.parts else "alone"
                    self._found[process.pid] = (step, core, times.user + times.system)

    def stop(self) -> list[tuple[str, int, float]]:
        """Return step, core and processor seconds of each child, in the order they began."""
        self._ended.set()
        self.join()
        return list(self._found.values())


def critical_path(children: Sequence[tuple[str, int, float]]) -> float:
    """Return the sum over steps of the longest share; what one worker does alone is a step each time."""
    steps: dict[str, float] = {}
    alone = 0.0
    for step, _, cpu in children:
        if step == "alone":
            alone += cpu
        else:
            steps[step] = max(steps.get(step, 0.0), cpu)
    return alone + sum(steps.values())


def divided_speedup(one: dict[str, Any], many: dict[str, Any]) -> float:
    """Return how many times as fast the part is that several workers share, in processor seconds."""
    rest = sum(child["cpu_seconds"] for child in many["children"] if child["step"] == "alone")
    alone = one["critical_path_cpu_seconds"] - rest
    return float(alone / (many["critical_path_cpu_seconds"] - rest))


def prepare(root: Path, samples: int, size: int, width: int, *, divide: float) -> list[Path]:
    """Write data, site.toml and two untrained networks: what they compute does not change what it costs."""
    images, labels = digits(size)
    index = np.arange(samples) % len(images)
    noise = np.random.default_rng(0).normal(0, 0.05, (samples, *images.shape[1:])).astype(np.float32)
    np.savez(root / "digits.npz", images=np.clip(images[index] + noise, 0, 1), labels=labels[index])
    (root / "site.toml").write_text(SITE.format(labels=json.dumps(DIGITS), divide=divide), encoding="utf-8")
    torch.manual_seed(0)
    widths = [width << stage for stage in range(4)]
    nets: list[nn.Module] = [PlainCNN(widths=widths).eval(), ResNet(widths=widths).eval()]
    paths = [root / f"{number}.safetensors" for number in range(len(nets))]
    for net, path in zip(nets, paths, strict=True):
        export(net, torch.from_numpy(images[:2]), path)
    return paths


def task(kind: str, models: Sequence[Path], size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return a task as the hub leases it."""
    metadata = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [size, size]}},
        "outputs": {"class": {"format": "logits", "num_channels": len(DIGITS)}},
        "labels": DIGITS,
        "license": "CC0-1.0",
    }
    members = [
        {
            "repo": f"north/net{number}",
            "revision": f"{number}" * 40,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "party": "north",
            "metadata": metadata,
        }
        for number, path in enumerate(models)
    ]
    files = {name: {"sha256": "a" * 64, "size": 1} for name in (CANDIDATES, STITCHES)}
    spec = (
        {"dataset": "digits", "options": options} if kind == "fit" else {"own": 0, "dataset": None, "candidates": files}
    )
    return {
        "id": f"task_{kind}",
        "kind": kind,
        "attempt": 1,
        "fence": 1,
        "lease_seconds": 60,
        "lease_expires_at": "2030-01-01T00:00:00Z",
        "job": {"id": "job_1", "requester": "north"},
        "spec": {"members": members, **spec},
    }


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between any two numbers of two folders of results."""

    def numbers(folder: Path) -> np.ndarray[Any, Any]:
        found = [np.zeros(0)]
        if (folder / STITCHES).exists():
            found += [v.double().flatten().numpy() for _, v in sorted(load((folder / STITCHES).read_bytes()).items())]
        for name in (CANDIDATES, "document.json"):
            if (folder / name).exists():
                found.append(np.array(list(_leaves(json.loads((folder / name).read_text(encoding="utf-8"))))))
        return np.concatenate(found)

    a, b = numbers(one), numbers(other)
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def _leaves(document: Any) -> Iterator[float]:
    if isinstance(document, dict | list):
        for part in document.values() if isinstance(document, dict) else document:
            yield from _leaves(part)
    elif isinstance(document, int | float):
        yield float(document)


def _offered(config: SiteConfig) -> int:
    return places(config.state) if any((config.state / "workers").glob("[!.]*")) else 0


def wait(condition: Any) -> None:
    """Wait until `condition` holds, an hour at most."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("this takes too long")
        time.sleep(_TICK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--width", type=int, default=16, help="channels of the networks' first stage")
    parser.add_argument("--steps", type=int, default=300, help="steps of refinement")
    parser.add_argument("--workers", type=int, default=2, help="compared with one")
    parser.add_argument("--divide", type=float, default=10.0, help="divide_seconds of site.toml")
    parser.add_argument("--json", type=Path, default=Path("site_scaling.json"))
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < options.workers:
        raise SystemExit(f"{options.workers} workers need as many cores; there are {len(cores)}")
    found: dict[str, dict[int, dict[str, Any]]] = {"fit": {}, "evaluate": {}}
    fitted: Path | None = None
    with tempfile.TemporaryDirectory(prefix="suture-scaling-") as name:
        for workers in (1, options.workers):
            root = Path(name) / str(workers)
            root.mkdir()
            models = prepare(root, options.samples, options.size, options.width, divide=options.divide)
            site = Site(root, cores[:workers])
            with site.running():
                for kind, results in found.items():
                    asked = task(kind, models, options.size, {"refine_steps": options.steps})
                    results[workers] = site.do(asked, models, fitted if kind == "evaluate" else None)
                    fitted = fitted or results[workers]["results"]
        several = options.workers
        for kind, results in found.items():
            one, many = results[1], results[several]
            differs = difference(one.pop("results"), many.pop("results"))
            ratios = {key: one[key] / many[key] for key in ("wall_seconds", "critical_path_cpu_seconds")}
            print(f"{kind}: largest difference {differs:.0e}")
            for workers, result in results.items():
                print(
                    f"  workers: {workers}; {result['wall_seconds']:.1f} s by the clock, "
                    f"{result['cpu_seconds']:.1f} s of processors, "
                    f"{result['critical_path_cpu_seconds']:.1f} s along the critical path"
                )
                for child in result["children"]:
                    print(f"      core {child['core']}: {child['step']:>8} {child['cpu_seconds']:.1f} s")
            print(
                f"  {several} workers are {ratios['wall_seconds']:.2f} times as fast by the clock, "
                f"{ratios['critical_path_cpu_seconds']:.2f} times along the critical path, "
                f"{divided_speedup(one, many):.2f} times in the part that is divided"
            )
            if differs > 1e-10:
                raise SystemExit("the results differ")
    write_json(
        options.json,
        "site_scaling",
        found,
        load=os.getloadavg(),
        **{k: v for k, v in vars(options).items() if k != "json"},
    )


if __name__ == "__main__":
    main()
