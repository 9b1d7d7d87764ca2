"""Machines that have a bucket and the queue in common, and no folder: where agent and workers find tasks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from suture_worker import folder
from suture_worker.capacity import WorkerOffer
from suture_worker.config import SiteConfig
from suture_worker.folder import TaskFolder
from suture_worker.task_store.place import HELD, WORKER, StorePlace
from suture_worker.task_store.presence import LAPSE_SECONDS, Presence

_COPY = "copy-"


class SharedStore:
    """Machines have a bucket and the queue in common, and no folder; see `SharedState`."""

    def __init__(self, config: SiteConfig) -> None:
        assert config.task_store is not None
        self._state, self._config = config.state, config.task_store
        self._presence = Presence(config)
        self._place = StorePlace(config.task_store, self._presence, agent=True)

    def task(self, task_id: str) -> TaskFolder:
        """Return the task's folder on the agent's disk."""
        return TaskFolder(self._state / "tasks", task_id, self._place)

    def unfinished(self) -> list[TaskFolder]:
        """Return the folders of tasks that were not brought to an end, oldest first."""
        tasks = folder.unfinished(self._state / "tasks", self._place)
        self._place.sweep({task.id for task in tasks})
        return tasks

    @contextmanager
    def opened(self, task_id: str) -> Iterator[TaskFolder]:
        """Give a worker a new copy of the task's folder, on its own disk; it is gone afterwards."""
        copies = self._state / "copies"
        copies.mkdir(mode=0o700, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=_COPY, dir=copies))
        lock = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            place = StorePlace(self._config, self._presence, agent=False)
            task = TaskFolder(own, task_id, place)
            place.fetch(task)
            yield task
        finally:
            shutil.rmtree(own, ignore_errors=True)
            os.close(lock)

    def at_work(self) -> int:
        """Return at how many tasks workers are."""
        return len({name.removeprefix(HELD).partition(":")[0] for name in self._presence.of(HELD)})

    def workers(self) -> list[WorkerOffer]:
        """Return the workers that run, in the order of their machines."""
        offers = []
        for _, content in sorted(self._presence.of(WORKER).items()):
            with contextlib.suppress(ValidationError):
                offers.append(WorkerOffer.model_validate_json(content))
        return offers

    @contextmanager
    def offering(self, count: int, devices: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
        """Say, as a worker, that it does `count` tasks at once, until it ends or calls what it is passed."""
        self._sweep()
        offer = WorkerOffer(
            host=socket.gethostname(), pid=os.getpid(), since=datetime.now(UTC), places=count, devices=tuple(devices)
        )
        name = f"{WORKER}{offer.host}-{offer.pid}-{secrets.token_hex(4)}"
        with self._presence.holding(name, offer.model_dump_json()) as withdraw:
            assert withdraw is not None
            yield withdraw

    def _sweep(self) -> None:
        """Remove what workers that were killed on this machine left."""
        for path in (self._state / "copies").glob(f"{_COPY}*"):
            with contextlib.suppress(OSError):
                if time.time() < path.stat().st_mtime + LAPSE_SECONDS:
                    continue  # perhaps not locked yet
                lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)
