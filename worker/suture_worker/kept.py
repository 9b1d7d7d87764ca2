"""Checkpoints of work that was not brought to an end, `state/checkpoints/<task>`: its next lease goes on from there.

Work loses its lease when site or hub were away for too long, and is then often leased by the same site again. A
checkpoint never leaves the site, is bound by the engine to exactly its work, and is deleted when it is old.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from suture_worker.folder import TaskFolder

KEEP_SECONDS = 7 * 86400.0
KEEP_BYTES = 8 * 2**30


class Kept:
    """The checkpoints in `folder`; the ones kept first go first when they are too old or too large together."""

    def __init__(self, folder: Path, *, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
        self._folder = folder
        self._keep_seconds = keep_seconds
        self._keep_bytes = keep_bytes

    def put(self, task: TaskFolder) -> None:
        """Keep what a task has finished so far, in place of what was kept of it before."""
        if not task.checkpoint.is_dir() or not any(task.checkpoint.iterdir()):
            return
        kept = self._folder / task.id
        self._folder.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        task.checkpoint.rename(kept)
        os.utime(kept)
        self.prune()

    def take(self, task: TaskFolder) -> None:
        """Give a task that begins anew what was kept of it."""
        self.prune()
        kept = self._folder / task.id
        if kept.is_dir():
            shutil.rmtree(task.checkpoint, ignore_errors=True)
            kept.rename(task.checkpoint)

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
