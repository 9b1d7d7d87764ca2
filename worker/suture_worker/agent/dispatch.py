"""Having a task done by the worker, which answers by files alone."""

from __future__ import annotations

import time

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from suture_contract.errors import Cancelled, SutureError
from suture_worker import broker
from suture_worker.agent.heartbeat import Heartbeat
from suture_worker.agent.retry import check
from suture_worker.compute.celery_app import ring
from suture_worker.config import SiteConfig
from suture_worker.folder import Outcome, TaskFolder
from suture_worker.shared import shared_by
from suture_worker.stop import Stop

#: How long a task may lie in the queue untouched before it is rung for again, and before it is given up.
RING_AGAIN_SECONDS = 10.0
NO_WORKER_SECONDS = 600.0
_TICK = 0.1

log = structlog.get_logger(__name__)


class NoWorkerError(SutureError):
    """No worker took the task; another time one may."""


class Dispatch:
    """Rings for the worker, waits for its work, and ends it."""

    def __init__(self, config: SiteConfig, app: Celery, stop: Stop) -> None:
        self._config = config
        self._app = app
        self._stop = stop
        self._shared = shared_by(config)

    def have_done(self, folder: TaskFolder, heartbeat: Heartbeat) -> Outcome:
        """Ring for the worker, again if need be, until the work has ended.

        Raises `Cancelled` where it had not begun, `NoWorkerError`, and what `check` raises.
        """
        started = touched = alive = time.monotonic()
        rung: float | None = None
        longest = self._config.limits.seconds * 2 + NO_WORKER_SECONDS
        while True:
            folder.refresh()
            if (outcome := folder.outcome) is not None:
                break
            check(self._stop, heartbeat)
            now = time.monotonic()
            if heartbeat.cancelled.is_set():
                self.end(folder)
                if folder.outcome is None:
                    raise Cancelled
                return folder.outcome
            if self._shared.at_work():
                alive = now  # if not at this one, then perhaps at the shares of another
            if folder.busy:
                touched = now
            elif now > max(alive, touched) + NO_WORKER_SECONDS or now > started + longest:
                folder.cancel()
                raise NoWorkerError("site.no_worker", "no worker took the task")
            elif rung is None or (now > max(rung, touched) + RING_AGAIN_SECONDS and self._queue_is_empty()):
                if folder.publish():
                    self._ring(folder.id)
                rung = now
            self._stop.wait(_TICK)
        self._wait_until_idle(folder)  # another share of it stops only now
        return outcome

    def _ring(self, task_id: str) -> None:
        try:
            ring(self._app, task_id)
        except (OperationalError, OSError):
            log.warning("the site's Redis does not answer; the task waits", task=task_id)

    def _queue_is_empty(self) -> bool:
        try:
            return broker.waiting(self._config) == 0
        except (redis.RedisError, OSError):
            return True

    def end(self, folder: TaskFolder) -> None:
        """Have a worker that is at it stop, and wait until it has."""
        if not folder.exists:
            return
        folder.cancel()
        self._wait_until_idle(folder)
        folder.refresh()

    def _wait_until_idle(self, folder: TaskFolder) -> None:
        deadline = time.monotonic() + 30
        while folder.busy and time.monotonic() < deadline:
            time.sleep(_TICK)
