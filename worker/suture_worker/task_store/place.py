"""How agent and workers meet over a task whose files are in a bucket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog

from suture_contract.errors import SutureError
from suture_worker.config import TaskStoreConfig
from suture_worker.folder import OUTCOME, PROGRESS, TaskFolder
from suture_worker.task_store.bucket import StoredObject, TaskBucket
from suture_worker.task_store.copies import TaskCopy
from suture_worker.task_store.presence import LAPSE_SECONDS, Presence, regularly

#: How often a worker asks whether it shall stop, and how often it lets others have what it has done so far.
_LOOK_SECONDS = 2.0
_KEEP_SECONDS = 10.0
#: How often the agent asks what workers have done, and who is at what.
_REFRESH_SECONDS = 1.0
#: Before the names of who is at a task, and of workers that run.
HELD, WORKER = "suture:held:", "suture:worker:"

log = structlog.get_logger(__name__)


class StorePlace:
    """How agent and workers meet over a task whose files are in a store; see `TaskPlace`."""

    def __init__(self, config: TaskStoreConfig, presence: Presence, *, agent: bool) -> None:
        self._config, self._presence, self._agent = config, presence, agent
        self._bucket: TaskBucket | None = None
        self._copies: dict[str, TaskCopy] = {}
        self._asked: dict[str, float] = {}
        self._turn = threading.Lock()

    @property
    def bucket(self) -> TaskBucket:
        """The bucket; made where it is first used, which is after a fork."""
        with self._turn:
            if self._bucket is None:
                self._bucket = TaskBucket(self._config)
            return self._bucket

    def copy(self, task: TaskFolder) -> TaskCopy:
        """Return the copy of the present lease."""
        copy = self._copies.get(task.id)
        if copy is None:
            copy = self._copies[task.id] = TaskCopy(self.bucket, task, task.assignment.task.fence)
        return copy

    def fetch(self, task: TaskFolder) -> None:
        """Have the files of the newest lease here; none if there is no such task."""
        leases = [
            int(fence)
            for fence, _, name in (name.partition("/") for name in self.bucket.list(f"tasks/{task.id}/"))
            if name == "task.json" and fence.isdecimal()
        ]
        task.path.mkdir(mode=0o700, parents=True)
        if leases:
            self._copies[task.id] = TaskCopy(self.bucket, task, max(leases))
            self._copies[task.id].pull()

    @contextmanager
    def hold(self, task: TaskFolder) -> Iterator[bool]:
        """Be at the task, or the share; False if another is."""
        with self._presence.holding(self._name(task)) as mine:
            if mine is None:
                yield False
                return
            copy = self.copy(task)
            copy.pull()
            task.own.mkdir(mode=0o700, parents=True, exist_ok=True)
            ended = threading.Event()
            thread = regularly(ended, _LOOK_SECONDS, self._keeping(copy, task))
            try:
                yield True
            except BaseException:
                ended.set()
                with contextlib.suppress(SutureError):
                    copy.push()
                raise
            finally:
                ended.set()
                thread.join()
            copy.push()

    def _keeping(self, copy: TaskCopy, task: TaskFolder) -> Callable[[], None]:
        """Return what is done from time to time while the work goes on."""
        kept = time.monotonic()
        own, results = (path.relative_to(task.path).as_posix() for path in (task.own, task.results))

        def keep() -> None:
            nonlocal kept
            copy.pull(lambda name, _: name in ("cancel", "outcome.json"))
            folders = [own, results]
            if time.monotonic() > kept + _KEEP_SECONDS:
                folders.append("checkpoint")
                kept = time.monotonic()
            copy.push(*folders)

        return keep

    def is_held(self, task: TaskFolder) -> bool:
        """Whether somebody is at this task or share itself."""
        return self._name(task) in self._names()

    def is_shared(self, task: TaskFolder) -> bool:
        """Whether somebody is at a share of the task."""
        prefix = f"{HELD}{task.id}:{self._fence(task)}:shares/"
        return any(name.startswith(prefix) for name in self._names())

    def _names(self) -> dict[str, bytes]:
        return self._presence.of(HELD, fresh=not self._agent)

    def _name(self, task: TaskFolder) -> str:
        return f"{HELD}{task.id}:{self._fence(task)}:{task.own.relative_to(task.path).as_posix()}"

    def _fence(self, task: TaskFolder) -> int:
        try:
            return self.copy(task).fence
        except SutureError:  # it was removed meanwhile
            return -1

    def publish(self, task: TaskFolder) -> bool:
        """Let the others have what was written here; False if they cannot just now."""
        if not task.exists:
            return False
        if not self._agent:
            self.copy(task).push()
            return True
        try:
            self.copy(task).push_missing()
        except SutureError as error:
            log.warning("the task's files cannot be stored; it waits", task=task.id, **error.as_dict())
            return False
        return True

    def refresh(self, task: TaskFolder, *, whole: bool = False) -> None:
        """Have here what the others wrote; with `whole` also what only they need."""
        now = time.monotonic()
        if not task.exists or (not whole and now < self._asked.get(task.id, -LAPSE_SECONDS) + _REFRESH_SECONDS):
            return
        try:
            self.copy(task).pull(_for_agent)
            if whole:
                self.copy(task).pull(lambda name, _: name.startswith("checkpoint/"))
        except SutureError as error:
            log.warning("it cannot be seen how far the task is", task=task.id, **error.as_dict())
        self._asked[task.id] = time.monotonic()

    def remove(self, task: TaskFolder) -> None:
        """Take the task's files from where the others find them."""
        self._copies.pop(task.id, None)
        self._asked.pop(task.id, None)
        if not self._agent:
            return
        try:
            prefix = f"tasks/{task.id}/"
            # That there is a task goes first, so that what is left is never taken for work.
            names = sorted(self.bucket.list(prefix), key=lambda name: not name.endswith("/task.json"))
            for some in (names[:1], names[1:]):
                self.bucket.delete(prefix + name for name in some)
        except SutureError as error:
            log.warning("the task's files stay in the store", task=task.id, **error.as_dict())

    def sweep(self, ids: set[str]) -> None:
        """Remove what is left of other tasks than these."""
        try:
            names = [f"tasks/{name}" for name in self.bucket.list("tasks/") if name.partition("/")[0] not in ids]
            self.bucket.delete(names)
        except SutureError as error:
            log.warning("files of tasks that have ended stay in the store", **error.as_dict())


def _for_agent(name: str, stored: Mapping[str, StoredObject]) -> bool:
    """Whether an agent wants this: how far all are, and once the task has ended, its results."""
    last = Path(name).name
    if name.startswith("results/") and last not in (PROGRESS, OUTCOME):
        return "outcome.json" in stored
    return last in (PROGRESS, "outcome.json", "count") or name.startswith("results/")
