"""What the process does that touches models and data; `forkserver` makes one for each task.

It gives up everything it does not need before it reads a model or data, does one task or a share of it, writes what may
leave into the folder's `results/`, and says how it ended. Whatever happens to it, the worker that watches it lives on.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from suture_contract.errors import Cancelled, SutureError
from suture_contract.files import is_full
from suture_stitching.running.progress import Progress as EngineProgress
from suture_worker.compute import confined
from suture_worker.compute.assignment import TaskWork
from suture_worker.compute.shards import ShareFolder
from suture_worker.folder import Outcome, Run, TaskFolder, TaskProgress
from suture_worker.leased_task import LeasedTask
from suture_worker.room import DISK_FULL, SPARE
from suture_worker.rules.policy import TOO_FEW, too_few

if TYPE_CHECKING:
    from suture_stitching.data import Dataset
    from suture_stitching.ensemble.members import Member

PROGRESS_SECONDS = 1.0
#: What torch's allocators and the loader of shared libraries say, none of which has a kind of error of its own for it.
_NO_MEMORY = ("out of memory", "can't allocate", "cannot allocate", "failed to map segment", "cannot map zero-fill")
_DEVICES = ("null", "zero", "urandom", "random")


class _Divided(Exception):
    """It is so much work that others should have a share in it."""


def find(path: Path, words: Sequence[str]) -> TaskFolder:
    """Return the folder of a task, or that of the share of it which the words name."""
    folder = TaskFolder(path.parent, path.name)
    return ShareFolder(folder, words[0], int(words[1])) if words else folder


def main(folder: TaskFolder) -> None:
    """Do the task in the folder, confined, and write its outcome."""
    run = folder.run
    give_up(folder, run)
    folder.write_child_outcome(_outcome(lambda: _do(folder, run)))


def give_up(folder: TaskFolder, run: Run) -> None:
    """Keep only what the task needs; say in the site's log what this kernel could not take away."""
    data = run.dataset.places if run.dataset is not None else []
    devices = [Path("/dev") / name for name in _DEVICES]
    if run.device.startswith("cuda"):
        devices += [*Path("/dev").glob("nvidia*"), Path("/dev/dxg"), Path("/dev/shm"), Path("/proc/self")]  # noqa: S108
    room = shutil.disk_usage(folder.path.parent).free - SPARE
    confined.give_up(
        read=[*data, folder.path],
        write=[folder.results, folder.scratch, folder.checkpoint, *devices],
        memory_bytes=run.memory_bytes,
        cpu_seconds=run.cpu_seconds,
        file_bytes=max(room, SPARE),
        # Redis listens on a local socket too; but CUDA needs some to reach its own services.
        local_sockets=run.device.startswith("cuda"),
    )


def _outcome(work: Callable[[], None]) -> Outcome:
    try:
        work()
    except Cancelled:
        return Outcome(state="cancelled", code="work.cancelled")
    except _Divided:
        return Outcome(state="divided")
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk of the log may be what is full
            traceback.print_exc()
        return _ended_badly(error)
    return Outcome(state="done")


def _ended_badly(error: Exception) -> Outcome:
    if is_full(error):  # with more room it works
        return Outcome(state="failed", code=DISK_FULL, retryable=True)
    if isinstance(error, SutureError):
        return Outcome(state="declined", code=TOO_FEW) if error.code == TOO_FEW else _failed(error.code)
    if isinstance(error, PermissionError):
        # Within its confinement only the dataset can hold something it may not read, such as a link that leads out.
        return _failed("dataset.not_readable")
    return _failed("work.out_of_memory" if _is_out_of_memory(error) else "work.failed")


def _failed(code: str) -> Outcome:
    try:
        return Outcome(state="failed", code=code)
    except ValidationError:
        return Outcome(state="failed", code="work.failed")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | ImportError | OSError) and any(words in text for words in _NO_MEMORY)


def _do(folder: TaskFolder, run: Run) -> None:
    task = folder.assignment.task
    report = _Reporter(folder, run.divide_from)
    report(EngineProgress("load", 0, len(task.spec.members)))
    dataset = _open(run, task)
    members = _load(task, folder, run, dataset)
    task.side.do(TaskWork(task, members, dataset, folder, run, report), task.spec)


def _open(run: Run, task: LeasedTask) -> Dataset | None:
    """Return the dataset if there are enough patients in the splits whose results will leave."""
    from suture_stitching.data import open_dataset

    if run.dataset is None:
        return None
    dataset = open_dataset(run.dataset)
    split = too_few({split: dataset.patients(split) for split in task.side.splits}, run.min_samples)
    if split is not None:
        raise SutureError(
            TOO_FEW, f"the {split} split has fewer than {run.min_samples} patients", where=str(run.dataset.path)
        )
    return dataset


def _load(task: LeasedTask, folder: TaskFolder, run: Run, dataset: Dataset | None) -> list[Member]:
    """Return the members; one that asks for more memory than there is, or does not run, is refused before it is read.

    Sizes that they leave free are those of the data; a composition has none, and takes those that were fitted at.
    """
    import torch

    from suture_stitching.ensemble.fitted import FitResult
    from suture_stitching.ensemble.members import Member
    from suture_stitching.portable.dry_run import Budget
    from suture_stitching.portable.runtime import load

    if run.threads is not None:
        torch.set_num_threads(run.threads)
    budget = Budget(bytes=run.memory_bytes)
    input_shape = dataset.input_shape if dataset is not None else FitResult.load(folder.candidates).input_shape
    members = []
    for index, member in enumerate(task.spec.members):
        path = folder.member(index)
        model = load(path, device=run.device, input_shapes=_input_shapes(path, input_shape), budget=budget)
        members.append(Member(model, member.metadata, member.ref))
    return members


def _input_shapes(path: Path, input_shape: Sequence[int]) -> list[list[int]]:
    """Return the sizes at which a member will run, with two samples; free ones are `input_shape`'s `(C, *spatial)`."""
    from suture_contract.model.format import check_file

    shapes = []
    for spec in check_file(path).graph.inputs:
        free = input_shape if len(input_shape) == len(spec.shape) - 1 else [None] * (len(spec.shape) - 1)
        sizes = [have if want is None else want for want, have in zip(spec.shape[1:], free, strict=True)]
        if None in sizes:
            raise SutureError(
                "member.input",
                f"reads inputs with {len(sizes) - 1} spatial axes, the data have {len(input_shape) - 1}",
                where=path.name,
                hint="choose models for data of one kind: all of slices, or all of volumes",
            )
        shapes.append([2, *(size for size in sizes if size is not None)])
    return shapes


class _Reporter:
    """Called by the engine between batches: notes how far it is, and stops it when the task was cancelled.

    Stops it too when so many seconds are left that the task is to be divided; not before the members are matched, which
    all shares need.
    """

    def __init__(self, folder: TaskFolder, divide_from: float | None) -> None:
        self._folder = folder
        self._divide_from = divide_from
        self._last = 0.0

    def __call__(self, progress: EngineProgress) -> None:
        if self._folder.cancelled:
            raise Cancelled
        left = progress.seconds_left if progress.step not in ("load", "match") else None
        if self._divide_from is not None and left is not None and left > self._divide_from:
            raise _Divided
        now = time.monotonic()
        if now < self._last + PROGRESS_SECONDS:
            return
        self._last = now
        self._folder.write_progress(
            TaskProgress(
                step=progress.step, done=progress.done, total=progress.total, seconds_left=progress.seconds_left
            )
        )
