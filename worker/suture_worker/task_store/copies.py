"""One lease's files of a task on this disk, and what of them is in the bucket."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from suture_worker.folder import TaskFolder
from suture_worker.task_store.bucket import Changed, StoredObject, TaskBucket

#: How often in a row files may change while they are read: what others write meanwhile, they write every few seconds.
_LISTED_AGAIN = 5
#: A file of a task, at most two folders deep; what a child calls otherwise is not passed on.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}){0,3}")
_FOLDERS = (".", "members", "candidates", "results", "checkpoint", "shares", "shares/*", "shares/*/results")
#: Each machine's own: what the child was given and printed there.
_OWN = {"run.json", "child.log", "lock", "cancel"}
#: What tells one content of a file on the disk from another.
_Signature: TypeAlias = tuple[int, int, int]


class TaskCopy:
    """One lease's files of a task on this disk, and what of them is in the store."""

    def __init__(self, bucket: TaskBucket, task: TaskFolder, fence: int) -> None:
        self.path, self.fence = task.path, fence
        self._bucket, self._prefix = bucket, f"tasks/{task.id}/{fence}/"
        self._same: dict[str, tuple[str | None, _Signature]] = {}
        self._turn = threading.RLock()

    def pull(self, wanted: Callable[[str, Mapping[str, StoredObject]], bool] = lambda *_: True) -> None:
        """Have here what others have stored, of the files that are `wanted` among those that there are."""
        with self._turn:
            for _ in range(_LISTED_AGAIN):
                with contextlib.suppress(Changed):
                    self._pull(wanted)
                    return

    def _pull(self, wanted: Callable[[str, Mapping[str, StoredObject]], bool]) -> None:
        stored = self._bucket.list(self._prefix)
        for name in sorted(stored, key=_last):
            known = self._same.get(name)
            if (known and known[0] == stored[name].etag) or not _NAME.fullmatch(name) or not wanted(name, stored):
                continue
            path = self.path / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._bucket.get(self._prefix + name, stored[name], path)
            self._same[name] = stored[name].etag, _signature(path.lstat())
        for name in [name for name in self._same if name not in stored and wanted(name, stored)]:
            (self.path / name).unlink(missing_ok=True)
            del self._same[name]

    def push(self, *folders: str) -> None:
        """Store what was written here in these folders, in all of them by default, and take away what was removed."""
        with self._turn:
            if not folders and "task.json" not in self._bucket.list(self._prefix):
                return  # the lease is over, and nobody wants it any more
            there = {name for at in folders or _FOLDERS for name in self._names(at)}
            for name in sorted(there, key=_last):
                if self._put(name) is None:
                    there.remove(name)
            if not folders:
                gone = [name for name in self._same if name not in there and name not in _OWN]
                self._bucket.delete(self._prefix + name for name in gone)
                for name in gone:
                    del self._same[name]

    def push_missing(self) -> None:
        """Store what is here and not yet in the store: an agent's part, which it writes once."""
        with self._turn:
            stored = self._bucket.list(self._prefix)
            missing = {name for at in _FOLDERS for name in self._names(at)} - stored.keys()
            missing |= {"cancel"} & {path.name for path in self.path.glob("cancel")} - stored.keys()
            for name in sorted(missing, key=_last):
                self._put(name)

    def _names(self, at: str) -> Iterator[str]:
        for place in self.path.glob(at) if at != "." else (self.path,):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
                for entry in entries:
                    name = (place / entry.name).relative_to(self.path).as_posix()
                    if entry.name not in _OWN and _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                        yield name

    def _put(self, name: str) -> str | None:
        """Store a file that is not yet stored as it is; None if it is none. A child wrote it: it may be anything."""
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            signature = _signature(status)
            if name not in self._same or self._same[name][1] != signature:
                self._same[name] = self._bucket.put(self._prefix + name, file), signature
        return name


def _signature(status: os.stat_result) -> _Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _last(name: str) -> tuple[int, str]:
    """Sort what others go by to the end: that there is a task, and that it or a share of it has ended."""
    ends = Path(name).name == "outcome.json"
    return (3 if name == "task.json" else (2 if "/" not in name else 1) if ends else 0), name
