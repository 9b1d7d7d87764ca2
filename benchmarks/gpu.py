"""Everything that runs on a GPU, checked and measured in ten minutes: `python benchmarks/gpu.py`.

    capture     members run and stitches are solved, beside what the device can do at most: a roofline of its own
    precision   bfloat16 against float32: explained variances and scores of the same fit
    refine      stitches are trained, twice: what a step takes, and whether both have the same bytes
    copies      batches from pinned memory against others
    memory      a fit that may use a fraction of the device's memory: smaller parts, the same stitches
    confined    a fit by a site's worker in a confined child, twice: on that device, with the same bytes
    devices     one process for each device, at once

Each prints what it found, and the command ends with an error where a check fails; a part that breaks off does not keep
the others from being tried. After `--seconds`, no further part is begun. `--device cpu` runs whatever needs no GPU and
says so: such figures say nothing about one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from common import machine, timed, write_json
from fit_floor import STEPS, Phases
from networks import DIGITS, PlainCNN, ResNet, as_member, classifiers, digits
from torch import Tensor, nn

from suture_contract.kinds import STITCHES
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member, batches
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, FitResult, fit
from suture_stitching.portable.dry_run import UNLIMITED, measure
from suture_stitching.running.device import Precision, Runner

#: Scores and explained variances of the two precisions may differ by so much.
SCORE, VARIANCE = 0.02, 0.05
#: The part of a device's memory that the fit with little memory may use.
FRACTION = 0.05
OPTIONS = FitOptions(refine=False)
TRAINED = FitOptions(refine_steps=120, refine_candidates=2)
#: Two trainings on one device may differ by so much: backward passes add up in no fixed order on some devices.
TRAINING = 0.05
Found: TypeAlias = dict[str, Any]


class Failed(Exception):
    """A check did not hold."""


class Bench:
    """Two members, their data and the device; what one part computes, the next ones compare with."""

    def __init__(self, device: str, size: int, samples: int) -> None:
        self.device, self.size, self.samples = torch.device(device), size, samples
        torch.manual_seed(0)
        own: list[nn.Module] = [PlainCNN(), ResNet()]
        self.nets, _ = classifiers(size, steps=60, nets=own)
        self.dataset = repeated(size, samples)
        self.members = [as_member(net, self.dataset, f"m{index}", index) for index, net in enumerate(self.nets)]
        self.here = [Member(m.model.to(self.device), m.metadata, m.ref) for m in self.members]
        self._fits: dict[str, FitResult] = {}

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def fitted(self, precision: Precision = "float32") -> FitResult:
        """Return the fit in a precision, computed once."""
        if precision not in self._fits:
            self._fits[precision] = fit(
                self.here, self.dataset, own=0, options=OPTIONS, device=self.device, precision=precision
            )
        return self._fits[precision]


def repeated(size: int, samples: int) -> ArrayDataset:
    """Return so many samples, each a digit with noise of its own."""
    images, labels = digits(size)
    index = np.arange(samples) % len(images)
    noise = np.random.default_rng(0).normal(0, 0.05, (samples, *images.shape[1:])).astype(np.float32)
    return ArrayDataset(images[index] + noise, labels[index], DIGITS, where="digits")


def roofline(device: torch.device) -> Found:
    """Return the most that this device does: multiplications in both precisions, and bytes read and written."""
    size = 4096 if device.type == "cuda" else 1024
    found: Found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_flops"] = 2 * size**3 / best(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    block = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    found["bytes_per_second"] = 2 * block.nbytes / best(block.clone, device)
    return found


def best(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    timed(work, device=device)
    return min(timed(work, device=device) for _ in range(rounds))


def plain_pass(bench: Bench) -> None:
    """Run both networks, as their authors wrote them, over what a fit reads."""
    with torch.no_grad():
        for split in ("train", "validation"):
            for x, _ in batches(bench.here, bench.dataset, split, bench.device):
                for net in bench.nets:
                    net(x)


def capture(bench: Bench) -> Found:
    for net in bench.nets:
        net.to(bench.device)
    ceiling = roofline(bench.device)
    plain = best(lambda: plain_pass(bench), bench.device, 3)
    phases: list[Phases] = []

    def fit_once() -> None:
        phases.append(Phases())
        fit(
            bench.here,
            bench.dataset,
            own=0,
            options=OPTIONS,
            device=bench.device,
            precision="float32",
            progress=phases[-1],
        )

    total = best(fit_once, bench.device, 3)
    took = min(sum(each.seconds.get(step, 0.0) for step in STEPS) for each in phases)
    read = bench.dataset.n("train") + bench.dataset.n("validation")
    costs = [
        measure(m.model.program, m.model.tensors, [(1, *bench.dataset.input_shape)], UNLIMITED).cost
        for m in bench.members
    ]
    flops = read * sum(cost.flops for cost in costs)
    moved = read * sum(cost.moved_bytes for cost in costs)
    least = max(flops / ceiling["float32_flops"], moved / ceiling["bytes_per_second"])
    return {
        **ceiling,
        "plain_pass_seconds": plain,
        "capture_match_solve_seconds": took,
        "fit_seconds": total,
        "passes": took / plain,
        "roofline_seconds": least,
        "plain_pass_of_roofline": least / plain,
        "capture_match_solve_of_roofline": least / took,
    }


def precision(bench: Bench) -> Found:
    exact, rough = bench.fitted("float32"), bench.fitted("bfloat16")
    variances = [explained(result) for result in (exact, rough)]
    shared = variances[0].keys() & variances[1].keys()
    if not shared:
        raise Failed("the two fits share no stitch")
    apart = [abs(variances[0][name] - variances[1][name]) for name in shared]
    scores = [
        evaluate(bench.here, exact, bench.dataset, own=0, device=bench.device, precision=p).splits["test"].scores
        for p in ("float32", "bfloat16")
    ]
    differences = [abs(scores[0][name].value - scores[1][name].value) for name in scores[0]]
    found = {
        "stitches": len(shared),
        "largest_difference_of_explained_variance": max(apart),
        "mean_difference_of_explained_variance": statistics.mean(apart),
        "candidates": len(differences),
        "largest_difference_of_score": max(differences),
    }
    if max(differences) > SCORE or statistics.mean(apart) > VARIANCE:
        raise Failed(f"bfloat16 says something else: {found}")
    return found


def explained(result: FitResult) -> dict[str, float]:
    matches = [match for candidate in result.candidates.candidates for match in candidate.matches]
    return {s.weight: s.r2 for match in matches for s in match.stitches if s.r2 is not None}


def refine(bench: Bench) -> Found:
    """Train the two most promising candidates, from the same start, twice."""
    found: list[tuple[FitResult, float]] = []
    for _ in range(2):
        began = time.perf_counter()
        phases = Phases()
        result = fit(bench.here, bench.dataset, own=0, options=TRAINED, device=bench.device, progress=phases)
        found.append((result, phases.seconds.get("refine", time.perf_counter() - began)))
    (one, _), (other, seconds) = found
    trained = [name for name in one.stitches if name.startswith("r")]
    if not trained:
        raise Failed("no stitch was trained")
    if not all(bool(torch.isfinite(one.stitches[name]).all()) for name in trained):
        raise Failed("a trained stitch is not finite")
    apart = same(one, other.stitches, TRAINING)
    return {
        "refine_seconds": seconds,
        "seconds_of_a_step_at_most": seconds / (TRAINED.refine_steps * TRAINED.refine_candidates),
        "trained_stitches": len(trained),
        "difference_of_two_runs": apart,
        "same_bytes": all(torch.equal(tensor, other.stitches[name]) for name, tensor in one.stitches.items()),
    }


def copies(bench: Bench) -> Found:
    block = torch.empty(2**26)  # 256 MiB
    found: Found = {
        "from_other_memory_bytes_per_second": block.nbytes
        / best(lambda: block.to(bench.device, copy=True), bench.device)
    }
    if not bench.cuda:
        return found
    pinned = block.pin_memory()
    seconds = best(lambda: pinned.to(bench.device, non_blocking=True), bench.device)
    found["from_pinned_memory_bytes_per_second"] = block.nbytes / seconds
    x, y = next(iter(bench.dataset.batches("train", 64)))
    if not (x.is_pinned() and y.is_pinned()):
        raise Failed("batches do not come from pinned memory")
    return found


def memory(bench: Bench) -> Found:
    if not bench.cuda:
        return {"left out": "memory is bounded on a CUDA device alone"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    plenty = bench.fitted()
    free, total = torch.cuda.mem_get_info(bench.device)
    torch.cuda.set_per_process_memory_fraction(FRACTION, bench.device)
    try:
        little = fit(bench.here, bench.dataset, own=0, options=OPTIONS, device=bench.device, precision="float32")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    same(plenty, little.stitches, 1e-3)
    return {"free_bytes": free, "total_bytes": total, "peak_bytes": torch.cuda.max_memory_allocated(bench.device)}


def same(result: FitResult, stitches: Mapping[str, Tensor], tolerance: float) -> float:
    """Return the largest difference of two fits' stitches, relative to each; raises `Failed` above the tolerance."""
    if result.stitches.keys() != stitches.keys():
        raise Failed("the fits have other stitches")
    apart = 0.0
    for name, tensor in result.stitches.items():
        own = tensor.double().cpu()
        apart = max(apart, float((own - stitches[name].double().cpu()).norm() / own.norm().clamp(min=1e-12)))
    if apart > tolerance:
        raise Failed(f"stitches differ by {apart:.1e}")
    return apart


def confined(bench: Bench) -> Found:
    """Have a site's worker do a fit, in the child that it forks and confines."""
    from safetensors.torch import load_file
    from site_scaling import SITE, prepare, task

    from suture_worker.compute.work import server, work
    from suture_worker.config import load_site, prepare_state
    from suture_worker.folder import Assignment, TaskFolder, Terms
    from suture_worker.leased_task import LeasedTask

    device = f"cuda:{bench.device.index or 0}" if bench.cuda else "cpu"
    with tempfile.TemporaryDirectory(prefix="suture-gpu-") as name:
        root = Path(name)
        models = prepare(root, bench.samples, bench.size, 16, divide=1e9)
        text = (root / "site.toml").read_text(encoding="utf-8")
        assert 'device = "cpu"' in SITE
        (root / "site.toml").write_text(text.replace('device = "cpu"', f'device = "{device}"'), encoding="utf-8")
        config = load_site(root / "site.toml")
        prepare_state(config)
        seconds, stitches = [], []
        try:
            server.start(config.state)
            for number in range(2):
                leased = task("fit", models, bench.size, {"refine": False})
                folder = TaskFolder(config.state / "tasks", f"task_fit_{number}")
                folder.create(Assignment(task=LeasedTask.parse({**leased, "id": folder.id}), dataset="digits"))
                folder.note_terms(Terms(min_samples=11, trusted=()))
                for index, path in enumerate(models):
                    folder.member(index).hardlink_to(path)
                began = time.perf_counter()
                state = work(config, folder.id)
                seconds.append(time.perf_counter() - began)
                if state != "done":
                    last = folder.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise Failed(f"the confined child ended with {folder.outcome}: {last}")
                if folder.run.device != device:
                    raise Failed(f"it ran on {folder.run.device}")
                stitches.append(load_file(folder.results / STITCHES))
        finally:
            server.stop()
    if any(not torch.equal(first, stitches[1][name]) for name, first in stitches[0].items()):
        raise Failed("two runs of one task on one device differ")
    return {"device": device, "first_seconds": seconds[0], "second_seconds": seconds[1], "bytes": "the same twice"}


#: A process of a worker with several devices sees one of them, and computes on it.
ALONE = """
import sys, time, torch
device = sys.argv[1]
size = 256 if device == "cpu" else 4096
a = torch.randn(size, size, device=device)
began = time.perf_counter()
for _ in range(50):
    a = (a @ a).clamp(-1, 1)
total = float(a.sum())  # waits until it is computed
print(1 if device == "cpu" else torch.cuda.device_count(), total, time.perf_counter() - began)
"""


def devices(bench: Bench) -> Found:
    from suture_worker.device import shares

    offered = shares("auto" if bench.cuda else "cpu")
    where = "cuda:0" if bench.cuda else "cpu"
    running = []
    for visible in offered:
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": visible} if visible is not None else {})}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", ALONE, where], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
            )
        )
    lines = [process.communicate(timeout=300)[0].split() for process in running]
    if any(process.returncode for process in running):
        raise Failed("a process could not compute on its device")
    if any(int(seen) != 1 for seen, *_ in lines):
        raise Failed("a process sees the devices of others")
    return {"devices": len(offered), "seconds": [float(line[2]) for line in lines]}


PARTS: dict[str, Callable[[Bench], Found]] = {
    "capture": capture,
    "precision": precision,
    "refine": refine,
    "copies": copies,
    "memory": memory,
    "confined": confined,
    "devices": devices,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cpu plays it where there is no GPU")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which no further part is begun")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu runs what needs none")
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    here = machine(options.device)
    print(f"{here['device']}, torch {here['torch']}, {here['cpu']}", flush=True)
    if options.device == "cpu":
        print("a stand-in: nothing here says anything about a GPU", flush=True)
    bench = Bench(options.device, options.size, options.samples)
    print(
        f"prepared in {time.perf_counter() - began:.0f} s; members run in {Runner(bench.device).precision} by default"
    )
    results: dict[str, Found] = {}
    failed: list[str] = []
    for name in options.only:
        if time.perf_counter() - began > options.seconds:
            failed.append(f"{name}: not begun, {options.seconds:.0f} s are over")
            continue
        started = time.perf_counter()
        try:
            results[name] = PARTS[name](bench)
        except Failed as error:
            failed.append(f"{name}: {error}")
            continue
        except Exception as error:  # the device is lent for minutes: the other parts are tried all the same
            traceback.print_exc()
            failed.append(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        print(f"{name}, {time.perf_counter() - started:.0f} s", flush=True)
        for key, value in results[name].items():
            print(f"    {key:<45} {value:.4g}" if isinstance(value, float) else f"    {key:<45} {value}", flush=True)
    settings = {"size": options.size, "samples": options.samples, "stand_in": options.device == "cpu"}
    write_json(options.json, "gpu", {"parts": results, "failed": failed}, device=options.device, **settings)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
