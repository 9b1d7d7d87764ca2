"""Heartbeats for one leased task, sent from a thread of their own while the agent downloads, waits or uploads."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType
from typing import Self

import structlog

from suture.errors import Fenced, HubError, NotFound
from suture_worker.agent.hub import HubClient
from suture_worker.egress.outbox import STEPS, Outbox
from suture_worker.folder import TaskFolder, TaskProgress
from suture_worker.leased_task import LeasedTask

PROGRESS_SECONDS = 5.0
#: So many heartbeats go out in the time that a lease lasts.
BEATS = 3
_TICK = 0.5

log = structlog.get_logger(__name__)


class Heartbeat:
    """Keeps the lease of `task` within its block, forwards progress, and hears what the hub wants.

    `lost` is set when the lease is no longer ours, `cancelled` when the job does not want the work any more.
    """

    def __init__(self, hub: HubClient, outbox: Outbox, task: LeasedTask, folder: TaskFolder) -> None:
        self.lost = threading.Event()
        self.cancelled = threading.Event()
        self._hub = hub
        self._outbox = outbox
        self._task = task
        self._folder = folder
        self._fetching: TaskProgress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {task.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def fetching(self, done: int, total: int) -> None:
        """Say how much of the members has been fetched, in bytes."""
        self._fetching = TaskProgress(step="fetch", done=max(0, done), total=total)

    def _run(self) -> None:
        interval = self._task.lease_seconds / BEATS
        sent: TaskProgress | None = None
        last = sent_at = -math.inf
        while not self._ended.is_set() and not self.lost.is_set():
            now = time.monotonic()
            progress = onward(sent, self._folder.progress or self._fetching)
            news = progress is not None and progress != sent
            # News counts from the last news, so that the first comes at once: a short task is over in seconds.
            if news and now - sent_at >= min(PROGRESS_SECONDS, interval):
                self._beat(progress)
                sent, sent_at, last = progress, now, now
            elif now - last >= interval:
                self._beat(None)
                last = now
            self._ended.wait(min(_TICK, interval / 2))

    def _beat(self, progress: TaskProgress | None) -> None:
        try:
            if progress is not None:
                answer = self._hub.send(self._outbox.progress(self._task.claim, progress))
            else:
                answer = self._hub.heartbeat(self._task.claim)
        except (Fenced, NotFound):
            log.warning("lease lost", task=self._task.id)
            self.lost.set()
        except HubError as error:
            # The work goes on: if the hub is back before it gives the task away, nothing is lost.
            log.warning("no heartbeat reached the hub", task=self._task.id, code=error.code)
        except Exception:  # a full disk under the outbox, say: the lease is worth another try
            log.exception("no heartbeat could be made", task=self._task.id)
        else:
            if answer is not None and answer.cancel:
                self.cancelled.set()


def onward(sent: TaskProgress | None, current: TaskProgress | None) -> TaskProgress | None:
    """Return the current progress, or what was sent already where that is further, with the time that is left now.

    Shares of a divided task begin their steps again, and so does work that goes on after it was killed.
    """
    if sent is None or current is None or _reached(current) >= _reached(sent):
        return current
    return sent.model_copy(update={"seconds_left": current.seconds_left})


def _reached(progress: TaskProgress) -> tuple[int, float]:
    step = STEPS.index(progress.step) if progress.step in STEPS else -1
    return step, progress.done / progress.total if progress.total else 0.0
