"""The agent: leases tasks, asks the policy, fetches what a task needs, has the worker do it, ships what may leave.

The only process of a site that holds its token or talks to the hub. It only dials out. All it knows about a task is in
the task's folder, so it may be killed at any time and goes on where it was; a lease that was lost meanwhile is dropped.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from suture.errors import AuthError, Fenced, HubError, NotFound, Unavailable
from suture_stitching.errors import Cancelled, SutureError
from suture_stitching.portable.format import check_against, check_file
from suture_worker import broker, faults
from suture_worker.agent.admission import Admission
from suture_worker.agent.cache import Cache
from suture_worker.agent.hub import LEASE_WAIT, Hub
from suture_worker.agent.kept import Kept
from suture_worker.agent.pulse import Pulse
from suture_worker.agent.waiting import Waiter, Waiting, Waits
from suture_worker.compute.celery_app import ring
from suture_worker.config import SiteConfig
from suture_worker.folder import Assignment, Outcome, TaskFolder, tasks_at_work, unfinished
from suture_worker.lease import Claim, Task, claim_of
from suture_worker.leaving.outbox import Cleared, Outbox
from suture_worker.places import MAX_PLACES, places
from suture_worker.rules.policy import DENIED, TOO_FEW, Allow, Decline
from suture_worker.stop import Stop

LONGEST_PAUSE = 60.0
#: How long a task may lie in the queue untouched before it is rung for again, and before it is given up.
RING_AGAIN_SECONDS = 10.0
NO_WORKER_SECONDS = 600.0
_DELIVERY_SECONDS = 24 * 3600.0
_FETCH_SECONDS = 1800.0
_TICK = 0.1

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
        self._kept = Kept(config.state / "kept")
        self._admission = Admission(config)
        self._waiting = Waiting(hub, outbox, self._admission.inbox)
        #: Held while the cache changes: two tasks may want the same member.
        self._cache_turn = threading.Lock()

    def run(self) -> None:
        """Work until told to stop; raises `suture.errors.AuthError` when the hub does not accept the token.

        As many tasks are under way as the worker has devices; no more are leased.
        """
        with ThreadPoolExecutor(MAX_PLACES, thread_name_prefix="task") as pool:
            try:
                self._run(pool)
            except _Stopping:
                log.info("stopped")
            except BaseException:
                self._stop.set()  # what is under way goes on at the next start
                raise

    def _run(self, pool: ThreadPoolExecutor) -> None:
        under_way = {pool.submit(self._resume, folder) for folder in unfinished(self._tasks)}
        failures = 0
        while True:
            under_way = self._free_place(pool, under_way)
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
                under_way.add(pool.submit(self._begin, leased))

    def _free_place(self, pool: ThreadPoolExecutor, under_way: set[Future[None]]) -> set[Future[None]]:
        """Wait until another task may be leased, and return those under way; raises what ended one of them.

        Those that a person has decided about go on first.
        """
        while True:
            if self._stop.is_set():
                raise _Stopping
            lost, cancelled = self._waiting.signs_of_life()
            under_way |= {pool.submit(self._drop, waiter, wanted=True) for waiter in lost}
            under_way |= {pool.submit(self._drop, waiter, wanted=False) for waiter in cancelled}
            decided = self._waiting.decided(free=places(self._config.state) - len(under_way))
            under_way |= {pool.submit(self._attend, waiter.task, waiter.folder) for waiter in decided}
            full = len(under_way) >= places(self._config.state)
            ended, under_way = wait(under_way, _TICK if full else 0.0, FIRST_COMPLETED)
            for task in ended:
                task.result()
            if not full:
                return under_way

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
        decision = self._admission.decide(task)
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
        self._follow(task, self._admission.decide(task))

    def _follow(self, task: Task, decision: Allow | Decline) -> None:
        """Do what the policy says about a task that is ours and not yet begun."""
        if isinstance(decision, Allow):
            folder = TaskFolder(self._tasks, task.id)
            folder.create(Assignment(task=task, dataset=decision.dataset))
            self._kept.take(folder)
            self._attend(task, folder)
            return
        log.info("declined", task=task.id, code=decision.code, reason=decision.reason)
        self._try(lambda: self._deliver(self._outbox.decline(task, decision.code), None), task.id)

    def _give_back(self, claim: Claim, error: SutureError) -> None:
        correlation_id = self._note(claim.task, error.code, str(error))
        message = self._outbox.failure(claim, error.code, correlation_id, retryable=False)
        self._try(lambda: self._deliver(message, None), claim.task)

    def _attend(self, task: Task, folder: TaskFolder) -> None:
        """Bring a leased task to its end, whichever; its folder is gone afterwards, unless the agent stops."""
        try:
            with Pulse(self._hub, self._outbox, task, folder) as pulse:
                done = self._try(lambda: self._bring_to_end(task, folder, pulse), task.id)
        except Waits as waits:
            self._waiting.add(task, folder, waits.waits_for)
            return
        if not done:
            self._end_work(folder)
            done = self._was_told(task, folder)
        ended = folder.outcome
        if (not done and not self._is_cancelled(task)) or (done and (ended is None or ended.state == "failed")):
            self._kept.put(folder)  # it may come again
        self._forget(task, folder)
        with self._cache_turn:
            self._cache.prune()

    def _drop(self, waiter: Waiter, *, wanted: bool) -> None:
        """End a waiting task whose lease is over, or whose job does not want it any more."""
        log.warning("dropped: nobody waits for it any more", task=waiter.task.id, waited_for=waiter.waits_for)
        if not wanted:
            message = self._outbox.failure(
                waiter.task.claim, "work.cancelled", faults.new_correlation_id(), retryable=False
            )
            self._try(lambda: self._deliver(message, None), waiter.task.id)
        self._forget(waiter.task, waiter.folder)

    def _forget(self, task: Task, folder: TaskFolder) -> None:
        folder.remove()
        self._admission.inbox.close(task.id)
        self._outbox.held.drop(task.id)

    def _is_cancelled(self, task: Task) -> bool:
        """Whether the job does not want the work any more; False where the hub cannot be asked or has moved on."""
        try:
            return self._hub.heartbeat(task.claim).cancel
        except HubError:
            return False

    def _was_told(self, task: Task, folder: TaskFolder) -> bool:
        """Whether the hub has the result of a lease that is over: an agent killed in between did not hear so."""
        outcome = folder.outcome
        if outcome is None or outcome.state != "done":
            return False

        def tell() -> None:
            self._hub.send(self._messages(task, folder, outcome)[-1])

        try:
            return self._try(tell, task.id)
        except (Waits, Unavailable):
            return False

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
                outcome = self._refused(task, folder) or self._have_done(task, folder, pulse)
            except HubError as error:
                outcome = self._failed(task, "model.unavailable", error, retryable=isinstance(error, Unavailable))
            except SutureError as error:
                outcome = self._failed(task, error.code, error)
            except OSError as error:
                outcome = self._failed(task, "site.io", error, retryable=True)
            except (_Lost, _Stopping, Waits):
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

    def _refused(self, task: Task, folder: TaskFolder) -> Outcome | None:
        """Ask rules, budget and, where a rule says so, a person; raises `Waits` until that one has decided."""
        decision = self._admission.admit(task, folder)
        if decision is None:
            raise Waits("approval")
        if isinstance(decision, Allow):
            return None
        log.info("declined", task=task.id, code=decision.code, reason=decision.reason)
        return Outcome(state="declined", code=decision.code)

    # Fetching

    def _fetch(self, task: Task, folder: TaskFolder, pulse: Pulse) -> None:
        """Bring members and candidates into the folder, verified and statically checked."""
        refs = task.files
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
                find = partial(self._admission.signers.find, self._hub, member)
                folder.note_signer(index, self._patiently(find, pulse))
                download = partial(self._hub.fetch_member, member, on_bytes=count)
                with self._cache_turn:
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
        started = touched = alive = time.monotonic()
        rung: float | None = None
        longest = self._config.limits.seconds * 2 + NO_WORKER_SECONDS
        while (outcome := folder.outcome) is None:
            self._check(pulse)
            now = time.monotonic()
            if pulse.cancelled.is_set():
                self._end_work(folder)
                return folder.outcome or self._failed(task, "work.cancelled", "cancelled before it began")
            if tasks_at_work(self._tasks):
                alive = now  # if not at this one, then perhaps at the shares of another
            if folder.busy:
                touched = now
            elif now > max(alive, touched) + NO_WORKER_SECONDS or now > started + longest:
                folder.cancel()
                return self._failed(task, "site.no_worker", "no worker took the task", retryable=True)
            elif rung is None or (now > max(rung, touched) + RING_AGAIN_SECONDS and self._queue_is_empty()):
                self._ring(task.id)
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

    def _end_work(self, folder: TaskFolder) -> None:
        """Have a worker that is at it stop, and wait until it has."""
        if not folder.exists:
            return
        folder.cancel()
        self._wait_until_idle(folder)

    def _wait_until_idle(self, folder: TaskFolder) -> None:
        deadline = time.monotonic() + 30
        while folder.busy and time.monotonic() < deadline:
            time.sleep(_TICK)

    # Telling the hub

    def _messages(self, task: Task, folder: TaskFolder, outcome: Outcome) -> list[Cleared]:
        if outcome.state == "done":
            try:
                return self._results(task, folder)
            except Waits:
                raise
            except SutureError as error:
                outcome = self._failed(task, error.code, error)
                if error.code == TOO_FEW:
                    outcome = Outcome(state="declined", code=TOO_FEW)
            except Exception:  # as above: whatever a child wrote, the agent must not fail on it again and again
                outcome = self._failed(task, "site.fault", traceback.format_exc())
        code = outcome.code or "work.failed"
        if outcome.state == "declined":
            return [self._outbox.decline(task, code)]
        correlation_id = outcome.correlation_id or faults.new_correlation_id()
        return [self._outbox.failure(task.claim, code, correlation_id, retryable=outcome.retryable)]

    def _results(self, task: Task, folder: TaskFolder) -> list[Cleared]:
        """Return what a finished task sends; raises `Waits` while a person has yet to allow it."""
        # Asked before the work began; but since then the operator may have changed the rules.
        if (refused := self._refused(task, folder)) is not None:
            return [self._outbox.decline(task, refused.code or DENIED)]
        if not self._admission.manual_release(task, folder):
            return self._outbox.result(task, folder)
        held = self._outbox.held
        if not held.has(task):
            self._outbox.hold(task, folder)
        verdict = held.verdict(task.id)
        if verdict is None:
            raise Waits("release")
        if verdict.released:
            return self._outbox.released(task)
        log.info("not released", task=task.id, by=verdict.by, reason=verdict.reason)
        return [self._outbox.decline(task, f"policy.{verdict.told}" if verdict.told else DENIED)]

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
