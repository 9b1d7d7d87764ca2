"""The agent: leases tasks, asks the policy, fetches what a task needs, has the worker do it, ships what may leave.

The only process of a site that holds its token or talks to the hub. It only dials out. All it knows about a task is in
the task's folder, so it may be killed at any time and goes on where it was; a lease that was lost meanwhile is dropped.
"""

from __future__ import annotations

import random
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from suture.http import AuthError, Fenced, HubError, NotFound, Unavailable
from suture_stitching.errors import Cancelled, SutureError
from suture_stitching.portable.format import check_against, check_file
from suture_worker import broker, faults
from suture_worker.cache import Cache
from suture_worker.celery_app import ring
from suture_worker.config import SiteConfig
from suture_worker.folder import Assignment, Outcome, TaskFolder, unfinished
from suture_worker.hub import LEASE_WAIT, Hub
from suture_worker.kept import Kept
from suture_worker.lease import CANDIDATES, STITCHES, Claim, Task, claim_of
from suture_worker.outbox import Cleared, Outbox
from suture_worker.policy import TOO_FEW, Allow, Decline, decide
from suture_worker.pulse import Pulse
from suture_worker.stop import Stop

LONGEST_PAUSE = 60.0
#: How long a task may lie in the queue untouched before it is rung for again, and before it is given up.
RING_AGAIN_SECONDS = 10.0
NO_WORKER_SECONDS = 600.0
_DELIVERY_SECONDS = 24 * 3600.0
_FETCH_SECONDS = 1800.0
_TICK = 0.25

log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class _Lost(Exception):
    """The lease is no longer ours."""


class _Stopping(Exception):
    """The agent was told to stop; the task stays for its next start."""


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Return how many seconds to wait after so many failures in a row: doubling from 1 to 60, half of it random."""
    return min(LONGEST_PAUSE, 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * jitter())


class Agent:
    """One site's agent. `stop` ends it, between two steps and out of any wait."""

    def __init__(self, config: SiteConfig, hub: Hub, outbox: Outbox, app: Celery, stop: Stop) -> None:
        self._config = config
        self._hub = hub
        self._outbox = outbox
        self._app = app
        self._stop = stop
        self._tasks = config.state / "tasks"
        self._cache = Cache(config.state / "cache")
        self._kept = Kept(config.state / "checkpoints")

    def run(self) -> None:
        """Work until told to stop; raises `suture.http.AuthError` when the hub does not accept the token."""
        try:
            for folder in unfinished(self._tasks):
                self._resume(folder)
            failures = 0
            while not self._stop.is_set():
                try:
                    leased = self._hub.lease(LEASE_WAIT)
                except AuthError:
                    raise
                except HubError as error:
                    failures += 1
                    pause = back_off(failures)
                    log.warning("the hub cannot be asked", code=error.code, problem=str(error), again_in=round(pause))
                    self._stop.wait(pause)
                    continue
                failures = 0
                if leased is not None:
                    self._begin(leased)
        except _Stopping:
            log.info("stopped")

    def _resume(self, folder: TaskFolder) -> None:
        try:
            assignment = folder.assignment
        except SutureError as error:
            log.warning("dropped", task=folder.id, problem=str(error))
            folder.remove()
            return
        task = assignment.task
        log.info("going on with a task", task=task.id, kind=task.kind)
        # The operator may have changed the rules, which is what sites are restarted for.
        decision = decide(task, self._config)
        if isinstance(decision, Allow) and decision.dataset == assignment.dataset:
            self._attend(task, folder)
            return
        self._end_work(folder)
        folder.remove()
        self._follow(task, decision)

    def _begin(self, leased: object) -> None:
        try:
            task = Task.parse(leased)
        except SutureError as error:
            claim = claim_of(leased)
            log.warning("a leased task is not in order", problem=str(error), task=claim.task if claim else None)
            if claim is not None:
                self._give_back(claim, error)
            return
        log.info("leased", task=task.id, kind=task.kind, attempt=task.attempt, requester=task.job.requester)
        self._follow(task, decide(task, self._config))

    def _follow(self, task: Task, decision: Allow | Decline) -> None:
        """Do what the policy says about a task that is ours and not yet begun."""
        if isinstance(decision, Allow):
            folder = TaskFolder(self._tasks, task.id)
            folder.create(Assignment(task=task, dataset=decision.dataset))
            self._kept.take(folder)
            self._attend(task, folder)
            return
        log.info("declined", task=task.id, code=decision.code, reason=decision.reason)
        self._try(lambda: self._deliver(self._outbox.decline(task.claim, decision.code), None), task.id)

    def _give_back(self, claim: Claim, error: SutureError) -> None:
        correlation_id = self._note(claim.task, error.code, str(error))
        message = self._outbox.failure(claim, error.code, correlation_id, retryable=False)
        self._try(lambda: self._deliver(message, None), claim.task)

    def _attend(self, task: Task, folder: TaskFolder) -> None:
        """Bring a leased task to its end, whichever; its folder is gone afterwards, unless the agent is stopping."""
        with Pulse(self._hub, self._outbox, task, folder) as pulse:
            done = self._try(lambda: self._bring_to_end(task, folder, pulse), task.id)
        if not done:
            self._end_work(folder)
        ended = folder.outcome
        if not done or ended is None or ended.state == "failed":
            self._kept.put(folder)  # it may come again
        folder.remove()
        self._cache.prune()

    def _try(self, step: Callable[[], None], task_id: str) -> bool:
        """Do the last step of a task; return False if its lease was lost or the hub wants nothing more of it."""
        try:
            step()
        except (_Lost, Fenced, NotFound):
            log.warning("dropped: the lease is over", task=task_id)
            return False
        except (AuthError, Unavailable):
            raise
        except HubError as error:
            log.warning("dropped: the hub refuses to hear of it", task=task_id, code=error.code, problem=str(error))
            return False
        return True

    def _bring_to_end(self, task: Task, folder: TaskFolder, pulse: Pulse) -> None:
        outcome = folder.outcome
        if outcome is None:
            try:
                self._fetch(task, folder, pulse)
                outcome = self._have_done(task, folder, pulse)
            except HubError as error:
                outcome = self._failed(task, "model.unavailable", error, retryable=isinstance(error, Unavailable))
            except SutureError as error:
                outcome = self._failed(task, error.code, error)
            except OSError as error:
                outcome = self._failed(task, "site.io", error, retryable=True)
            except (_Lost, _Stopping):
                raise
            except Exception:  # a fault of ours must not bring the agent back to the same task for ever
                outcome = self._failed(task, "site.fault", traceback.format_exc(), retryable=True)
        for message in self._messages(task, folder, outcome):
            try:
                self._deliver(message, pulse)
            except (AuthError, Fenced, NotFound, Unavailable):
                raise
            except HubError as error:
                if message.kind in ("fail", "decline"):
                    raise
                correlation_id = self._note(task.id, "result.refused", str(error))
                refused = self._outbox.failure(task.claim, "result.refused", correlation_id, retryable=False)
                self._deliver(refused, pulse)
                return
        log.info("told the hub", task=task.id, state=outcome.state, code=outcome.code)

    # Fetching

    def _fetch(self, task: Task, folder: TaskFolder, pulse: Pulse) -> None:
        """Bring members and candidates into the folder, verified and statically checked."""
        files = task.files
        refs = {CANDIDATES: files.candidates, STITCHES: files.stitches} if files else {}
        total = sum(member.size for member in task.spec.members) + sum(ref.size for ref in refs.values())
        self._check_space(total)
        fetched = 0
        pulse.fetching(fetched, total)

        def count(arrived: int) -> None:
            nonlocal fetched
            fetched += arrived
            pulse.fetching(fetched, total)
            self._check(pulse)
            if pulse.cancelled.is_set():
                raise Cancelled

        # What is in the folder already was checked when it came, and a child cannot write there.
        for index, member in enumerate(task.spec.members):
            if not folder.member(index).exists():
                download = partial(self._hub.fetch_member, member, on_bytes=count)
                path = self._patiently(partial(self._cache.get, member.sha256, download), pulse)
                check_against(check_file(path), member.metadata, where=member.repo)
                folder.member(index).hardlink_to(path)
        for name, ref in refs.items():
            target = folder.candidates / name
            if not target.exists():
                self._patiently(partial(self._hub.fetch_job_file, task.job.id, name, ref, target, count), pulse)

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._config.state).free
        if free < 2 * needed + 2**26:
            raise SutureError(
                "site.disk_full",
                f"{needed} bytes are needed, {free} are free",
                where=str(self._config.state),
                hint="make room, or give the site another state folder",
            )

    def _patiently(self, fetch: Callable[[], _T], pulse: Pulse) -> _T:
        deadline = time.monotonic() + _FETCH_SECONDS
        failures = 0
        while True:
            self._check(pulse)
            try:
                return fetch()
            except Unavailable:
                failures += 1
                if time.monotonic() > deadline:
                    raise
                self._stop.wait(back_off(failures))

    # Having it done

    def _have_done(self, task: Task, folder: TaskFolder, pulse: Pulse) -> Outcome:
        """Ring for the worker, again if need be, until the work has ended."""
        started = touched = time.monotonic()
        rung: float | None = None
        longest = self._config.limits.seconds * 2 + NO_WORKER_SECONDS
        while (outcome := folder.outcome) is None:
            self._check(pulse)
            now = time.monotonic()
            if pulse.cancelled.is_set():
                self._end_work(folder)
                return folder.outcome or self._failed(task, "work.cancelled", "cancelled before it began")
            if folder.busy:
                touched = now
            elif now > touched + NO_WORKER_SECONDS or now > started + longest:
                folder.cancel()
                return self._failed(task, "site.no_worker", "no worker took the task", retryable=True)
            elif rung is None or (now > max(rung, touched) + RING_AGAIN_SECONDS and self._queue_is_empty()):
                self._ring(task.id)
                rung = now
            self._stop.wait(_TICK)
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

    def _end_work(self, folder: TaskFolder) -> None:
        """Have a worker that is at it stop, and wait until it has."""
        if not folder.exists:
            return
        folder.cancel()
        deadline = time.monotonic() + 30
        while folder.busy and time.monotonic() < deadline:
            time.sleep(_TICK)

    # Telling the hub

    def _messages(self, task: Task, folder: TaskFolder, outcome: Outcome) -> list[Cleared]:
        if outcome.state == "done":
            try:
                return self._outbox.result(task, folder)
            except SutureError as error:
                outcome = self._failed(task, error.code, error)
                if error.code == TOO_FEW:
                    outcome = Outcome(state="declined", code=TOO_FEW)
            except Exception:  # as above: whatever a child wrote, the agent must not fail on it again and again
                outcome = self._failed(task, "site.fault", traceback.format_exc())
        code = outcome.code or "work.failed"
        if outcome.state == "declined":
            return [self._outbox.decline(task.claim, code)]
        correlation_id = outcome.correlation_id or faults.new_correlation_id()
        return [self._outbox.failure(task.claim, code, correlation_id, retryable=outcome.retryable)]

    def _deliver(self, message: Cleared, pulse: Pulse | None) -> None:
        """Send, waiting for a hub that is away as long as the lease may still be ours, a day at most."""
        deadline = time.monotonic() + _DELIVERY_SECONDS
        failures = 0
        while True:
            self._check(pulse)
            try:
                self._hub.send(message)
                return
            except Unavailable as error:
                failures += 1
                if time.monotonic() > deadline:
                    raise _Lost from error
                log.warning("the hub is away; the result waits", task=message.claim.task, code=error.code)
                self._stop.wait(back_off(failures))

    def _check(self, pulse: Pulse | None) -> None:
        if self._stop.is_set():
            raise _Stopping
        if pulse is not None and pulse.lost.is_set():
            raise _Lost

    def _failed(self, task: Task, code: str, problem: object, *, retryable: bool = False) -> Outcome:
        correlation_id = self._note(task.id, code, str(problem))
        return Outcome(state="failed", code=code, correlation_id=correlation_id, retryable=retryable)

    def _note(self, task_id: str, code: str, text: str) -> str:
        correlation_id = faults.new_correlation_id()
        faults.note(self._config.state, task=task_id, code=code, correlation_id=correlation_id, text=text)
        log.warning("failed", task=task_id, code=code, correlation_id=correlation_id)
        return correlation_id
