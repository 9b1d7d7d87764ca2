"""What the machines of a site share: the files of tasks, who is at which, and which workers run.

Either a folder, the site's state, in which the kernel keeps the locks; or, with a `[task_store]`, a bucket and the
queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from suture_worker import capacity, folder
from suture_worker.capacity import WorkerOffer
from suture_worker.config import SiteConfig
from suture_worker.folder import TaskFolder


class SharedState(Protocol):
    """What agent and workers have in common."""

    def task(self, task_id: str) -> TaskFolder:
        """Return the task's folder, as the agent has it."""

    def unfinished(self) -> list[TaskFolder]:
        """Return the folders of tasks that the agent did not bring to an end, oldest first."""

    def opened(self, task_id: str) -> AbstractContextManager[TaskFolder]:
        """Give a worker the task's folder, to work in."""

    def at_work(self) -> int:
        """Return at how many tasks workers are."""

    def workers(self) -> list[WorkerOffer]:
        """Return the workers that run, in the order of their machines."""

    def offering(self, count: int, devices: Sequence[str] = ()) -> AbstractContextManager[Callable[[], None]]:
        """Say, as a worker, that it does `count` tasks at once, until it ends or calls what it is passed."""


class SharedFolder:
    """All have the state folder, on one machine or on a disk that several mount."""

    def __init__(self, config: SiteConfig) -> None:
        self._state = config.state

    def task(self, task_id: str) -> TaskFolder:
        """Return the task's folder."""
        return TaskFolder(self._state / "tasks", task_id)

    def unfinished(self) -> list[TaskFolder]:
        """Return the folders of tasks that were not brought to an end, oldest first."""
        return folder.unfinished(self._state / "tasks")

    @contextmanager
    def opened(self, task_id: str) -> Iterator[TaskFolder]:
        """Give a worker the task's folder, which is that of the agent."""
        yield self.task(task_id)

    def at_work(self) -> int:
        """Return at how many tasks workers are."""
        return folder.tasks_at_work(self._state / "tasks")

    def workers(self) -> list[WorkerOffer]:
        """Return the workers that run, in the order of their machines."""
        return capacity.workers(self._state)

    def offering(self, count: int, devices: Sequence[str] = ()) -> AbstractContextManager[Callable[[], None]]:
        """Say, as a worker, that it does `count` tasks at once, until it ends or calls what it is passed."""
        return capacity.offering(self._state, count, devices)


def shared_by(config: SiteConfig) -> SharedState:
    """Return what the machines of this site share; nothing is asked of a store yet."""
    if config.task_store is None:
        return SharedFolder(config)
    from suture_worker.task_store import SharedStore

    return SharedStore(config)
