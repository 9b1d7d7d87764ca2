"""What a task would take, found out before anybody agrees to it.

`python -m suture_worker.compute.preview FOLDER PARENT`

The process is confined as the one that does the work, has no data, and runs the models on shapes alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from suture_worker.compute import confine
from suture_worker.compute.confined import ask
from suture_worker.folder import Run, TaskFolder
from suture_worker.rules.inbox import Estimate

if TYPE_CHECKING:
    from suture_stitching.portable.dry_run import Cost

_SECONDS = 120
#: In the pass that is looked at.
_SAMPLES = 2
_MEMORY = 4 * 2**30
_LONGEST_ANSWER = 4096
#: Both sides of the matrices whose product tells how fast this processor is, and the bytes of what is read and written
#: to find how fast it moves them.
_SIDE, _BYTES = 512, 32 * 2**20
#: What a step takes beside its arithmetic, seconds.
OVERHEAD = 1e-5


def estimate(folder: TaskFolder) -> Estimate | None:
    """Return what the members in the folder take; None if that depends on the data, or they cannot be run at all."""
    folder.scratch.mkdir(mode=0o700, exist_ok=True)
    try:
        with folder.log.open("wb") as log:
            text = ask(
                __name__,
                [str(folder.path)],
                folder=folder.scratch,
                log=log,
                seconds=_SECONDS,
                most=_LONGEST_ANSWER,
            )
        return Estimate.model_validate_json(text or b"")
    except (OSError, ValidationError):
        return None


def main(arguments: list[str]) -> None:
    """Print the estimate as JSON."""
    path, parent = arguments
    confine.die_with_parent(int(parent))
    folder = TaskFolder(Path(path).parent, Path(path).name)
    from suture_worker.compute.child import give_up

    run = Run(device="cpu", threads=1, memory_bytes=_MEMORY, cpu_seconds=_SECONDS, min_samples=2, dataset=None)
    give_up(folder, run)
    costs = [_cost(folder.member(index)) for index in range(len(folder.assignment.task.spec.members))]
    flops, bandwidth = speed()
    seconds = sum(cost.seconds(flops, bandwidth, OVERHEAD) for cost in costs) / _SAMPLES
    content: dict[str, object] = {
        "flops_per_sample": sum(cost.flops // _SAMPLES for cost in costs),
        "peak_bytes": max(cost.expected_bytes for cost in costs),
        "seconds_per_1000": float(f"{1000 * seconds:.3g}"),
    }
    task = folder.assignment.task
    print(json.dumps(content | task.side.estimate(folder, task.spec)))


def _cost(path: Path) -> Cost:
    """Return what a pass of one model takes."""
    from suture_contract.model.format import check_file
    from suture_stitching.portable.dry_run import dry_run

    header = check_file(path)
    shapes = []
    for spec in header.graph.inputs:
        sizes = spec.shape[1:]
        if None in sizes:
            raise SystemExit(1)
        shapes.append([_SAMPLES, *(size for size in sizes if size is not None)])
    return dry_run(header.graph, header.tensors, shapes)


def speed() -> tuple[float, float]:
    """Return how many floating-point operations, and bytes read and written, this processor does a second.

    One thread: in a matrix product, and in an operator element by element, whose result is memory that is new to it.
    """
    import torch

    torch.set_num_threads(1)
    left = torch.ones(_SIDE, _SIDE)
    left @ left
    started = time.perf_counter()
    for _ in range(4):
        left @ left
    flops = 4 * 2 * _SIDE**3 / (time.perf_counter() - started)
    values = torch.ones(_BYTES // 4)
    started = time.perf_counter()
    for _ in range(2):
        torch.relu(values)
    return flops, 2 * 2 * _BYTES / (time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1:])
