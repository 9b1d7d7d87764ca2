"""Tasks that wait for a person: the hub is told so, their leases are kept, and no device is kept busy by them."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Literal

import structlog

from suture.errors import AuthError, Fenced, HubError, NotFound
from suture_worker.agent.hub import HubClient
from suture_worker.egress.outbox import Cleared, Outbox
from suture_worker.folder import TaskFolder
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.inbox import Inbox

#: How often the hub hears of a waiting task, and we hear whether its job goes on.
HEARTBEAT_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Waits(Exception):
    """The task goes on when a person has decided."""

    def __init__(self, waits_for: Literal["approval", "release"]) -> None:
        super().__init__(waits_for)
        self.waits_for: Literal["approval", "release"] = waits_for


@dataclass
class Waiter:
    """A waiting task, what the hub is told of it, and when it was last told."""

    task: LeasedTask
    folder: TaskFolder
    waits_for: Literal["approval", "release"]
    message: Cleared
    told_at: float = -math.inf


class Waiting:
    """The tasks of this agent that wait."""

    def __init__(self, hub: HubClient, outbox: Outbox, inbox: Inbox) -> None:
        self._hub = hub
        self._outbox = outbox
        self._inbox = inbox
        self._waiters: dict[str, Waiter] = {}
        self._turn = threading.Lock()

    def add(self, task: LeasedTask, folder: TaskFolder, waits_for: Literal["approval", "release"]) -> None:
        """Have a task wait; the next heartbeat tells the hub."""
        waiter = Waiter(task, folder, waits_for, self._outbox.waiting(task.claim, waits_for))
        with self._turn:
            self._waiters[task.id] = waiter

    def decided(self, *, free: int) -> list[Waiter]:
        """Take out the tasks a person has decided about; of those to be worked on, as many as there are free places."""
        waiters = []
        for waiter in self._all():
            work = self._to_be_worked_on(waiter)
            if work is None or (work and free <= 0):
                continue
            free -= work
            waiters.append(waiter)
        self._remove(waiters)
        return waiters

    def send_heartbeats(self) -> tuple[list[Waiter], list[Waiter]]:
        """Tell the hub of the waiting tasks, where that is due; take out and return those lost and those cancelled."""
        lost, cancelled = [], []
        now = time.monotonic()
        for waiter in self._all():
            if now < waiter.told_at + HEARTBEAT_SECONDS:
                continue
            waiter.told_at = now
            try:
                answer = self._hub.send(waiter.message)
            except (Fenced, NotFound):
                lost.append(waiter)
            except AuthError:
                raise
            except HubError as error:
                log.warning("no heartbeat reached the hub", task=waiter.task.id, code=error.code)
                waiter.told_at = now + 1 - HEARTBEAT_SECONDS  # once more, soon: its lease may be a short one yet
                break  # the others would wait as long for nothing
            else:
                if answer is not None and answer.cancel:
                    cancelled.append(waiter)
        self._remove([*lost, *cancelled])
        return lost, cancelled

    def _to_be_worked_on(self, waiter: Waiter) -> bool | None:
        """Say what was decided; None so far."""
        if waiter.waits_for == "release":
            return False if self._outbox.held.verdict(waiter.task.id) is not None else None
        dataset = waiter.folder.assignment.dataset
        answer = self._inbox.answer(waiter.task, dataset) if dataset is not None else None
        return answer.approved if answer is not None else None

    def _all(self) -> list[Waiter]:
        with self._turn:
            return list(self._waiters.values())

    def _remove(self, waiters: list[Waiter]) -> None:
        with self._turn:
            for waiter in waiters:
                self._waiters.pop(waiter.task.id, None)
