"""Folders of tasks that were not brought to an end, `state/kept/<task id>`: the next lease of one goes on from there.

Work loses its lease when site or hub were away for too long, and is then often leased by the same site again. Its
checkpoint is used again, and so are results that were ready to be sent, if exactly the same is asked for. Nothing here
has left the site, and what is old is deleted.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from suture_worker.folder import Assignment, TaskFolder

KEEP_SECONDS = 7 * 86400.0
KEEP_BYTES = 8 * 2**30
_TASK, _WAS, _CHECKPOINT, _OUTCOME = "task.json", "was.json", "checkpoint", "outcome.json"
_RESULTS = (
    "members",
    "candidates",
    "results",
    "terms.json",
    _OUTCOME,
)  # the outcome last: it says that the others are there


class Kept:
    """The folders in `folder`; the ones kept first go first when they are too old or too large together."""

    def __init__(self, folder: Path, *, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
        self._folder = folder
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes

    def put(self, task: TaskFolder) -> None:
        """Keep the folder of a task if there is anything to go on from, in place of what was kept of it before."""
        task.refresh(whole=True)
        if not task.exists or not (_has_files(task.checkpoint) or _is_done(task)):
            return
        kept = self._folder / task.id
        self._folder.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        (task.path / _TASK).rename(task.path / _WAS)  # no work any more, whatever happens now
        task.path.rename(kept)
        os.utime(kept)
        self.prune()

    def take(self, task: TaskFolder) -> None:
        """Give a task that begins anew what was kept of it."""
        self.prune()
        kept = self._folder / task.id
        if not kept.is_dir():
            return
        names = [_CHECKPOINT]
        if _is_done(TaskFolder(self._folder, task.id)) and _asks_the_same(kept / _WAS, task.assignment):
            names += _RESULTS
        for name in names:
            if (kept / name).exists():
                shutil.rmtree(task.path / name, ignore_errors=True)
                (kept / name).rename(task.path / name)
        shutil.rmtree(kept, ignore_errors=True)

    def prune(self) -> None:
        """Delete what is too old, and the oldest while all together are too large."""
        if not self._folder.is_dir():
            return
        total = 0
        for kept in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            # Links are counted as what they are, and not followed: a child wrote these.
            total += sum(path.lstat().st_size for path in kept.rglob("*"))
            if total > self._keep_bytes or time.time() - kept.stat().st_mtime > self._keep_seconds:
                shutil.rmtree(kept, ignore_errors=True)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_done(task: TaskFolder) -> bool:
    outcome = task.outcome
    return outcome is not None and outcome.state == "done"


def _asks_the_same(path: Path, now: Assignment) -> bool:
    """Whether it is the same work, by all but the number of its lease."""
    try:
        was = Assignment.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return False
    same = (was.dataset, was.task.job, was.task.kind, was.task.spec)
    return same == (now.dataset, now.task.job, now.task.kind, now.task.spec)
