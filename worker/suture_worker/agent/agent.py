"""The agent: leases tasks, asks the policy, fetches what a task needs, has the worker do it, ships what may leave.

The only process of a site that holds its token or talks to the hub. It only dials out. All it knows about a task is in
the task's folder, so it may be killed at any time and goes on where it was; a lease that was lost meanwhile is dropped.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import structlog
from celery import Celery

from suture.errors import AuthError, Fenced, HubError, NotFound, Unavailable
from suture_contract.errors import SutureError
from suture_contract.files import is_full
from suture_worker import faults
from suture_worker.agent.admission import Admission
from suture_worker.agent.dispatch import Dispatch, NoWorkerError
from suture_worker.agent.fetching import Fetching
from suture_worker.agent.heartbeat import Heartbeat
from suture_worker.agent.hub import LEASE_WAIT, HubClient
from suture_worker.agent.resumable import Kept
from suture_worker.agent.retry import Lost, Stopping, back_off, check
from suture_worker.agent.waiting import Waiter, Waiting, Waits
from suture_worker.capacity import MAX_PLACES, places
from suture_worker.config import SiteConfig
from suture_worker.egress.outbox import Cleared, Outbox
from suture_worker.folder import Assignment, Outcome, TaskFolder
from suture_worker.leased_task import Claim, LeasedTask, claim_of
from suture_worker.room import DISK_FULL, check_room
from suture_worker.rules.in_force import InForce
from suture_worker.rules.policy import DENIED, TOO_FEW, Allow, Asked, Decline, offers
from suture_worker.shared import shared_by
from suture_worker.stop import Stop

_DELIVERY_SECONDS = 24 * 3600.0
_TICK = 0.1
#: How often a site.toml that is not in order is looked at again.
_RULES_SECONDS = 10.0
#: So many tasks in a row for which the worker had nothing to do are nothing unusual. A hub that goes on so is asked
#: less often: each answer to it is a line in the log of what left.
_FRUITLESS = 10
_PACE_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Agent:
    """One site's agent. `stop` ends it, between two steps and out of any wait."""

    def __init__(self, config: SiteConfig, hub: HubClient, outbox: Outbox, app: Celery, stop: Stop) -> None:
        self._config = config
        self._hub = hub
        self._outbox = outbox
        self._stop = stop
        self._shared = shared_by(config)
        self._admission = Admission(config)
        self._fetching = Fetching(config, hub, self._admission, stop)
        self._rules = InForce(config, [self._admission.use, outbox.use, self._use])
        self._dispatch = Dispatch(config, app, stop)
        self._kept = Kept(config.state / "kept")
        self._waiting = Waiting(hub, outbox, self._admission.inbox)
        #: Answers of the hub in a row that brought the worker nothing to do.
        self._fruitless = 0

    def _use(self, config: SiteConfig) -> None:
        self._config = config

    def run(self) -> None:
        """Work until told to stop; raises `suture.errors.AuthError` when the hub does not accept the token.

        As many tasks are under way as the worker has devices; no more are leased.
        """
        with ThreadPoolExecutor(MAX_PLACES, thread_name_prefix="task") as pool:
            try:
                self._run(pool)
            except Stopping:
                log.info("stopped")
            except BaseException:
                self._stop.set()  # what is under way goes on at the next start
                raise

    def _tell_datasets(self) -> None:
        """Tell the hub the names of the datasets that the own party may fit on, where the operator wants that.

        Where not, what was told before is taken back. A hub that is away, or knows no such message, is told next time.
        """
        marker = self._config.state / "told_datasets"
        if not self._config.hub.tell_datasets and not marker.exists():
            return
        try:
            names = None
            if self._config.hub.tell_datasets:
                own = Asked(str(self._hub.whoami()["party"]), "fit")
                names = sorted(offers(own, self._config))
                marker.touch()
            self._hub.send(self._outbox.datasets(names))
        except AuthError:
            raise
        except HubError as error:
            log.warning("the hub was not told of datasets", code=error.code, problem=str(error))
        else:
            if names is None:
                marker.unlink(missing_ok=True)

    def _run(self, pool: ThreadPoolExecutor) -> None:
        self._wait_for_rules()
        self._wait_for_room()
        self._tell_datasets()
        announced = self._config
        under_way = {pool.submit(self._resume, folder) for folder in self._shared.unfinished()}
        failures = 0
        while True:
            under_way = self._free_place(pool, under_way)
            self._wait_for_rules()
            if announced is not self._config:
                self._tell_datasets()
                announced = self._config
            self._wait_for_room()
            if (beyond := self._fruitless - _FRUITLESS) > 0:
                self._stop.wait(min(_PACE_SECONDS, back_off(beyond)))
            asked_at = time.monotonic()
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
            held = leased is None and time.monotonic() - asked_at > LEASE_WAIT / 10
            self._fruitless = max(0, self._fruitless - 1) if held else self._fruitless + 1

    def _wait_for_rules(self, heartbeat: Heartbeat | None = None) -> None:
        """Go by what site.toml says now; while it is not in order, wait: nothing is leased, and no result leaves."""
        failures = 0
        while True:
            check(self._stop, heartbeat)
            try:
                self._rules.refresh()
            except SutureError as error:
                failures += 1
                pause = min(_RULES_SECONDS, back_off(failures))
                log.error("nothing is leased and no result leaves", again_in=round(pause), **error.as_dict())
                self._stop.wait(pause)
            else:
                return

    def _wait_for_room(self) -> None:
        """Begin nothing while the disk under the state is full: it could not be brought to an end, nor refused."""
        failures = 0
        while not self._stop.is_set():
            try:
                check_room(self._config.state)
            except SutureError as error:
                failures += 1
                pause = back_off(failures)
                log.warning("no task is leased", again_in=round(pause), **error.as_dict())
                self._stop.wait(pause)
            else:
                return

    def _free_place(self, pool: ThreadPoolExecutor, under_way: set[Future[None]]) -> set[Future[None]]:
        """Wait until another task may be leased, and return those under way; raises what ended one of them.

        Those that a person has decided about go on first.
        """
        while True:
            if self._stop.is_set():
                raise Stopping
            lost, cancelled = self._waiting.send_heartbeats()
            under_way |= {pool.submit(self._drop, waiter, wanted=True) for waiter in lost}
            under_way |= {pool.submit(self._drop, waiter, wanted=False) for waiter in cancelled}
            decided = self._waiting.decided(free=places(self._shared.workers()) - len(under_way))
            under_way |= {pool.submit(self._attend, waiter.task, waiter.folder) for waiter in decided}
            full = len(under_way) >= places(self._shared.workers())
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
        self._dispatch.end(folder)
        folder.remove()
        self._follow(task, decision)

    def _begin(self, leased: object) -> None:
        try:
            task = LeasedTask.parse(leased)
        except SutureError as error:
            claim = claim_of(leased)
            log.warning("a leased task is not in order", problem=str(error), task=claim.task if claim else None)
            if claim is not None:
                self._give_back(claim, error)
            return
        self._wait_for_rules()
        log.info("leased", task=task.id, kind=task.kind, attempt=task.attempt, requester=task.job.requester)
        self._follow(task, self._admission.decide(task))

    def _follow(self, task: LeasedTask, decision: Allow | Decline) -> None:
        """Do what the policy says about a task that is ours and not yet begun."""
        if isinstance(decision, Allow):
            folder = self._shared.task(task.id)
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

    def _attend(self, task: LeasedTask, folder: TaskFolder) -> None:
        """Bring a leased task to its end, whichever; its folder is gone afterwards, unless the agent stops."""
        try:
            with Heartbeat(self._hub, self._outbox, task, folder) as heartbeat:
                done = self._try(lambda: self._bring_to_end(task, folder, heartbeat), task.id)
        except Waits as waits:
            self._waiting.add(task, folder, waits.waits_for)
            return
        if not done:
            self._dispatch.end(folder)
            done = self._was_told(task, folder)
        ended, cancelled = folder.outcome, not done and self._is_cancelled(task)
        if cancelled:  # while its result was on its way
            self._tell_cancelled(task)
        if not (done or cancelled) or (done and (ended is None or ended.state == "failed")):
            self._kept.put(folder)  # it may come again
        self._forget(task, folder)
        self._fetching.prune()

    def _drop(self, waiter: Waiter, *, wanted: bool) -> None:
        """End a waiting task whose lease is over, or whose job does not want it any more."""
        log.warning("dropped: nobody waits for it any more", task=waiter.task.id, waited_for=waiter.waits_for)
        if not wanted:
            self._tell_cancelled(waiter.task)
        self._forget(waiter.task, waiter.folder)

    def _forget(self, task: LeasedTask, folder: TaskFolder) -> None:
        folder.remove()
        self._admission.inbox.close(task.id)
        self._outbox.held.drop(task.id)

    def _tell_cancelled(self, task: LeasedTask) -> None:
        """Say that a task ended which the job does not want any more: else its lease would have to lapse."""
        message = self._outbox.failure(task.claim, "work.cancelled", faults.new_correlation_id(), retryable=False)
        self._try(lambda: self._deliver(message, None), task.id)

    def _is_cancelled(self, task: LeasedTask) -> bool:
        """Whether the job does not want the work any more; False where the hub cannot be asked or has moved on."""
        try:
            return self._hub.heartbeat(task.claim).cancel
        except HubError:
            return False

    def _was_told(self, task: LeasedTask, folder: TaskFolder) -> bool:
        """Whether the hub has the result of a lease that is over: an agent killed in between did not hear so."""
        outcome = folder.outcome
        if outcome is None or outcome.state != "done":
            return False

        def tell() -> None:
            self._rules.refresh()
            self._hub.send(self._messages(task, folder, outcome)[-1])

        try:
            return self._try(tell, task.id)
        except (Waits, Unavailable, SutureError):
            return False

    def _try(self, step: Callable[[], None], task_id: str) -> bool:
        """Do the last step of a task; return False if its lease was lost or the hub wants nothing more of it."""
        try:
            step()
        except (Lost, Fenced, NotFound):
            log.warning("dropped: the lease is over", task=task_id)
            return False
        except (AuthError, Unavailable):
            raise
        except HubError as error:
            log.warning("dropped: the hub refuses to hear of it", task=task_id, code=error.code, problem=str(error))
            return False
        return True

    def _bring_to_end(self, task: LeasedTask, folder: TaskFolder, heartbeat: Heartbeat) -> None:
        outcome = folder.outcome
        if outcome is None:
            try:
                self._fetching.fetch(task, folder, heartbeat)
                self._wait_for_rules(heartbeat)
                outcome = self._refused(task, folder) or self._have_done(folder, heartbeat)
            except HubError as error:
                outcome = self._failed(task, "model.unavailable", error, retryable=isinstance(error, Unavailable))
            except (SutureError, OSError) as error:
                outcome = self._trouble(task, error)
            except (Lost, Stopping, Waits):
                raise
            except Exception:  # a fault of ours must not bring the agent back to the same task for ever
                outcome = self._failed(task, "site.fault", traceback.format_exc(), retryable=True)
        self._wait_for_rules(heartbeat)
        messages = self._messages(task, folder, outcome)
        for message in messages:
            try:
                self._deliver(message, heartbeat)
            except (AuthError, Fenced, NotFound, Unavailable):
                raise
            except HubError as error:
                if message.kind in ("fail", "decline"):
                    raise
                correlation_id = self._note(task.id, "result.refused", str(error))
                refused = self._outbox.failure(task.claim, "result.refused", correlation_id, retryable=False)
                self._deliver(refused, heartbeat)
                return
        # Who asked, and who has measured candidates, may read the job's report.
        has_report = messages[-1].kind == "result" and task.kind in ("evaluate", "compose")
        report = {"report": f"suture report {task.job.id}, when the job has ended"} if has_report else {}
        log.info("told the hub", task=task.id, state=outcome.state, code=outcome.code, **report)

    def _have_done(self, folder: TaskFolder, heartbeat: Heartbeat) -> Outcome:
        self._fruitless = 0
        return self._dispatch.have_done(folder, heartbeat)

    def _refused(self, task: LeasedTask, folder: TaskFolder) -> Outcome | None:
        """Ask rules, budget and, where a rule says so, a person; raises `Waits` until that one has decided."""
        decision = self._admission.admit(task, folder)
        if decision is None:
            raise Waits("approval")
        if isinstance(decision, Allow):
            return None
        log.info("declined", task=task.id, code=decision.code, reason=decision.reason)
        return Outcome(state="declined", code=decision.code)

    # Telling the hub

    def _messages(self, task: LeasedTask, folder: TaskFolder, outcome: Outcome) -> list[Cleared]:
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

    def _results(self, task: LeasedTask, folder: TaskFolder) -> list[Cleared]:
        """Return what a finished task sends; raises `Waits` while a person has yet to allow it."""
        # Asked before the work began; but since then the operator may have changed the rules.
        if (refused := self._refused(task, folder)) is not None:
            return [self._outbox.decline(task, refused.code or DENIED)]
        if not self._admission.manual_release(task, folder):
            return self._spent(task, folder) or self._outbox.result(task, folder)
        # Anew where the limits have changed since: nobody has looked at what they let out now.
        self._outbox.hold(task, folder)
        verdict = self._outbox.held.verdict(task.id)
        if verdict is None:
            raise Waits("release")
        if verdict.released:
            return self._spent(task, folder) or self._outbox.released(task)
        log.info("not released", task=task.id, by=verdict.by, reason=verdict.reason)
        return [self._outbox.decline(task, f"policy.{verdict.told}" if verdict.told else DENIED)]

    def _spent(self, task: LeasedTask, folder: TaskFolder) -> list[Cleared] | None:
        """Enter what the result spends of its job's account; return the refusal where that holds too little."""
        refused = self._admission.spend(task, folder)
        if refused is None:
            return None
        log.warning("not sent", task=task.id, code=refused.code, reason=refused.reason)
        return [self._outbox.decline(task, refused.code)]

    def _deliver(self, message: Cleared, heartbeat: Heartbeat | None) -> None:
        """Send, waiting for a hub that is away as long as the lease may still be ours, a day at most."""
        deadline = time.monotonic() + _DELIVERY_SECONDS
        failures = 0
        while True:
            check(self._stop, heartbeat)
            try:
                self._hub.send(message)
                return
            except Unavailable as error:
                failures += 1
                if time.monotonic() > deadline:
                    raise Lost from error
                log.warning("the hub is away; the result waits", task=message.claim.task, code=error.code)
                self._stop.wait(back_off(failures))

    def _failed(self, task: LeasedTask, code: str, problem: object, *, retryable: bool = False) -> Outcome:
        correlation_id = self._note(task.id, code, str(problem))
        return Outcome(state="failed", code=code, correlation_id=correlation_id, retryable=retryable)

    def _trouble(self, task: LeasedTask, error: SutureError | OSError) -> Outcome:
        if is_full(error):
            return self._failed(task, DISK_FULL, error, retryable=True)
        if isinstance(error, OSError):
            return self._failed(task, "site.io", error, retryable=True)
        return self._failed(task, error.code, error, retryable=isinstance(error, NoWorkerError))

    def _note(self, task_id: str, code: str, text: str) -> str:
        correlation_id = faults.new_correlation_id()
        faults.note(self._config.state, task=task_id, code=code, correlation_id=correlation_id, text=text)
        log.warning("failed", task=task_id, code=code, correlation_id=correlation_id)
        return correlation_id
