"""How a job moves: every change of a job or task is made here, and recorded as an event in the same transaction.

The event of a change says from which state to which, by whom (a party or site with its token, or the hub), and why.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from suture_contract.documents import Missing
from suture_service.audit.chain import HUB
from suture_service.audit.chain import record as audit
from suture_service.auth import Caller
from suture_service.hub import HubContext, party_news, tell
from suture_service.jobs import repository
from suture_service.kinds import KINDS
from suture_service.parties.repository import ever_named
from suture_service.states import (
    ACTIVE_JOBS,
    ACTIVE_TASKS,
    BEGINNINGS,
    EVALUATED_JOBS,
    UNDISCLOSED,
    Fail,
    JobEvent,
    JobState,
    Overdue,
    Rules,
    TaskEvent,
    TaskState,
    TaskView,
    missing_parties,
    next_job_state,
    next_step,
    next_task_state,
    passed_over,
    wanted,
)
from suture_service.tables import Event, Job, Party, Task

#: Why a task whose heartbeats ended is open again.
LAPSED = "task.lease_expired"
#: Why a task is late, or has expired.
NO_ANSWER = "task.no_answer"
#: Why a job ends whose model nobody can have any more.
MEMBER_PURGED = "job.member_purged"
#: Why a task has expired whose party has left the hub.
PARTY_GONE = "task.party_gone"

log = structlog.get_logger(__name__)


class Lifecycle:
    """One job, locked (`repository.lock_job`), within one transaction; `by` is None for what the hub does by itself."""

    def __init__(self, hub: HubContext, session: Session, job: Job, by: Caller | None) -> None:
        self._hub = hub
        self._by = {"by": by.name, "token": by.token_id} if by is not None else {"by": "hub"}
        self._session = session
        self.job = job
        self.now = hub.now()

    @property
    def active(self) -> bool:
        """Whether the job has not ended."""
        return self.job.state in ACTIVE_JOBS

    def wants(self, task: Task) -> bool:
        """Whether the job, ended or not, still wants the task's result."""
        return wanted(JobState(self.job.state), _rules(task))

    def begin(self) -> None:
        """Record the new job and add its first task."""
        self.record("job", {"from": None, "state": self.job.state, **self._by})
        self._audit("ask", models=[f"{m.revision.model.repo}@{m.revision.revision}" for m in self.job.members])
        self._ask(self._beginning)

    def lease(self, task: Task, site_id: int) -> None:
        """Give an open task to a site."""
        task.site_id = site_id
        task.progress = None
        task.lease_expires_at = self.lease_end()
        self._move_task(task, TaskEvent.LEASE)
        self._hub.metrics.leased.labels(task.kind).inc()
        if self.job.state == JobState.QUEUED:
            self._move_job(BEGINNINGS[self._beginning][0])

    def complete(self, task: Task, document: dict[str, Any]) -> None:
        """End a leased task with its result."""
        task.result = document
        self._move_task(task, TaskEvent.COMPLETE)
        if self.job.state == JobState.PARTIAL:
            self.job.finished_at = None
            self._move_job(JobEvent.ANSWERED)
            self._ask(JobState.COMPOSING, again=True)
        else:
            self._compose_with(task)
        self._advance()

    def fail(self, task: Task, code: str, correlation_id: str | None, *, retryable: bool) -> None:
        """End a leased task without a result, or open it again if that may help."""
        task.reason, task.correlation_id = code, correlation_id
        if not self.wants(task):
            self._move_task(task, TaskEvent.CANCEL, code)
        elif retryable and task.attempt < self._hub.settings.max_attempts:
            self._requeue(task, code)
        else:
            self._move_task(task, TaskEvent.FAIL, code)
            self._compose_with(task)
        self._advance()

    def decline(self, task: Task, code: str) -> None:
        """End a leased task that the site's policy does not allow."""
        task.reason = code
        if code == UNDISCLOSED and self.wants(task) and task.party_id != self.job.requester_id:
            self._requeue(task, None, attempt=task.attempt)
        else:
            self._move_task(task, TaskEvent.DECLINE if self.wants(task) else TaskEvent.CANCEL, code)
            self._compose_with(task)
        self._advance()

    def progress(self, task: Task, progress: dict[str, Any]) -> None:
        """Record how far a leased task is."""
        task.progress = progress
        repository.drop_progress(self._session, self.job.id, task.id)
        self.record("progress", progress, task)

    def cancel(self) -> None:
        """End the job; open tasks end with it, sites that hold a lease hear of it at their next heartbeat."""
        self._end(JobEvent.CANCEL)

    def lose_member(self) -> None:
        """End the job, or the wait for late answers, because a model that it needs was purged."""
        if self.active:
            self.job.error_code = MEMBER_PURGED
            self._end(JobEvent.FAIL)
        self.give_up_late(MEMBER_PURGED)

    def give_up_late(self, reason: str) -> None:
        """Wait for no late answer any more."""
        for task in self.job.tasks:
            if task.state == TaskState.LATE:
                task.reason = reason
                self._move_task(task, TaskEvent.EXPIRE, reason)

    def lose_party(self, party_id: int) -> None:
        """Go on without a party that has gone; its own job ends."""
        if self.job.requester_id == party_id:
            if self.active:
                self.cancel()
            self.give_up_late(PARTY_GONE)
        for task in self.job.tasks:
            if task.party_id == party_id and task.state in (*ACTIVE_TASKS, TaskState.LATE):
                task.reason = PARTY_GONE
                self._move_task(task, TaskEvent.EXPIRE, PARTY_GONE)
        self._advance()

    def retry(self) -> None:
        """Open a failed job again, with what it failed at and what its failure cut short; what was done stays done."""
        self.job.error_code = self.job.error_correlation_id = self.job.finished_at = None
        self._move_job(BEGINNINGS[self._beginning][1])
        rules = [_rules(task) for task in self.job.tasks]
        for task in self.job.tasks:
            if passed_over(_rules(task), rules):
                continue  # what is open again goes without those that are missing
            if task.state == TaskState.LEASED:
                # Its site has heard, or is about to hear, that nothing more is wanted.
                self._open_again(task, TaskEvent.REQUEUE, "job.retried", attempt=1)
            elif task.state in (TaskState.FAILED, TaskState.CANCELLED) or (
                task.state == TaskState.DECLINED and task.party_id == self.job.requester_id
            ):
                self._open_again(task, TaskEvent.RETRY, "job.retried", attempt=1)
        self._advance()

    def ask_again(self) -> None:
        """Ask the parties that are missing from an ended job again: those that failed, and that did not answer."""
        self.job.answer_by = self.now
        for task in self.job.tasks:
            if _rules(task).overdue is Overdue.LATE and task.state in (TaskState.FAILED, TaskState.EXPIRED):
                self._open_again(task, TaskEvent.DEFER, "job.retried", attempt=1)
        self._advance()

    def catch_up(self) -> None:
        """Do what time has brought: lapsed leases, and parties that did not answer in time."""
        job = self.job
        for task in job.tasks:
            if task.state == TaskState.LEASED and task.lease_expires_at and task.lease_expires_at < self.now:
                self._hub.metrics.lapsed.inc()
                self._lapse(task)
        if job.answer_by is not None and job.answer_by < self.now:
            for task in job.tasks:
                if _rules(task).during == job.state and task.party_id != job.requester_id:
                    self._overdue(task)
        for task in job.tasks:
            if task.state == TaskState.LATE and self.too_late:
                task.reason = NO_ANSWER
                self._move_task(task, TaskEvent.EXPIRE, NO_ANSWER)
        self._advance()

    def _overdue(self, task: Task) -> None:
        """Go on without a party that has not answered in time."""
        overdue = _rules(task).overdue
        if task.state not in ACTIVE_TASKS or overdue is Overdue.WAITED_FOR:
            return
        if overdue is Overdue.LEFT_OUT:
            task.reason = NO_ANSWER
            self._move_task(task, TaskEvent.EXPIRE, NO_ANSWER)
            return
        if task.reason != UNDISCLOSED:
            task.reason = NO_ANSWER
        self._open_again(task, TaskEvent.DEFER, NO_ANSWER, attempt=1)

    @property
    def too_late(self) -> bool:
        """Whether late answers are not waited for any longer."""
        late = timedelta(seconds=self._hub.settings.late_seconds)
        return self.job.answer_by is not None and self.job.answer_by + late < self.now

    def lease_end(self) -> datetime:
        """Return when a lease that is given or renewed now ends."""
        return self.now + timedelta(seconds=self._hub.settings.lease_seconds)

    def record(self, kind: str, data: dict[str, Any], task: Task | None = None) -> None:
        """Add an event to the job's history."""
        tell(self._session, self.job.id)
        if task is not None and task.state in (TaskState.OPEN, TaskState.LATE):
            tell(self._session, party_news(task.party_id))
        self.job.last_seq += 1
        task_id = task.id if task is not None else None
        self._session.add(
            Event(job_id=self.job.id, seq=self.job.last_seq, at=self.now, task_id=task_id, kind=kind, data=data)
        )

    def _audit(self, what: str, **detail: Any) -> None:
        actor = HUB if self._by["by"] == "hub" else self._by["by"]
        audit(self._session, actor, f"job.{what}", self.job.id, owner=self.job.requester.name, **detail)

    def _lapse(self, task: Task) -> None:
        if not self.wants(task):
            self._move_task(task, TaskEvent.CANCEL, LAPSED)
        elif task.attempt < self._hub.settings.max_attempts:
            task.reason = LAPSED
            self._requeue(task, LAPSED)
        else:
            task.reason = "task.attempts_exhausted"
            self._move_task(task, TaskEvent.FAIL, task.reason)
            self._compose_with(task)

    def _requeue(self, task: Task, reason: str | None, *, attempt: int | None = None) -> None:
        late = _rules(task).overdue is Overdue.LATE and self.job.state in EVALUATED_JOBS
        event = TaskEvent.DEFER if late else TaskEvent.REQUEUE
        self._open_again(task, event, reason, attempt=task.attempt + 1 if attempt is None else attempt)

    def _compose_with(self, answered: Task) -> None:
        """Let who composes already begin anew, with what this late answer has brought."""
        if _rules(answered).overdue is not Overdue.LATE:
            return
        for task in self.job.tasks:
            if _rules(task).during is JobState.COMPOSING and task.state == TaskState.LEASED:
                self._open_again(task, TaskEvent.REQUEUE, "job.answered", attempt=task.attempt)

    def _open_again(self, task: Task, event: TaskEvent, reason: str | None, *, attempt: int) -> None:
        task.attempt = attempt
        task.fence += 1
        task.site_id = task.lease_expires_at = task.progress = task.finished_at = None
        self._move_task(task, event, reason)

    def _move_task(self, task: Task, event: TaskEvent, reason: str | None = None) -> None:
        before = task.state
        task.state = next_task_state(TaskState(task.state), event)
        data: dict[str, Any] = {"kind": task.kind, "party": task.party.name, "from": before, "state": task.state}
        data |= {"attempt": task.attempt, **self._by}
        if task.state not in ACTIVE_TASKS:
            task.finished_at = self.now
            self._hub.metrics.ended.labels(task.kind, task.state).inc()
        if reason is not None:
            data["reason"] = reason
        self.record("task", data, task)

    def _move_job(self, event: JobEvent) -> None:
        job = self.job
        before = job.state
        job.state = next_job_state(JobState(job.state), event)
        data: dict[str, Any] = {"from": before, "state": job.state, **self._by}
        if job.state not in ACTIVE_JOBS:
            job.finished_at = self.now
            self._hub.metrics.jobs.labels(job.state).inc()
            if job.error_code is not None:
                data["error"] = {"code": job.error_code, "correlation_id": job.error_correlation_id}
            self._audit(job.state)
        self.record("job", data)

    def _advance(self) -> None:
        while self.active and (step := next_step(JobState(self.job.state), views(self.job))) is not None:
            if isinstance(step, Fail):
                self.job.error_code, self.job.error_correlation_id = step.code, step.correlation_id
                self._end(JobEvent.FAIL)
                return
            self._move_job(step.event)
            self._ask(JobState(self.job.state))

    @property
    def _beginning(self) -> JobState:
        """Where the job's first task belongs."""
        return JobState.MATCHING if self.job.contribute_from else JobState.FITTING

    def _ask(self, state: JobState, *, again: bool = False) -> None:
        """Add the tasks of a state that the job has come to; a retry has them already, unless there are to be more."""
        job = self.job
        kinds = {name: kind for name, kind in KINDS.items() if kind.rules.during is state}
        if any(kind.rules.overdue is not Overdue.WAITED_FOR for kind in kinds.values()):
            job.answer_by = self.now + timedelta(seconds=job.evaluate_within)
        for name, kind in kinds.items():
            if not again and any(task.kind == name for task in job.tasks):
                continue
            for asked, dataset in kind.asked(job):
                party = ever_named(self._session, asked) if asked != job.requester.name else job.requester
                assert party is not None, "names stay with the parties that had them"
                self._add_task(name, party, dataset)

    def _add_task(self, kind: str, party: Party, dataset: str | None) -> None:
        task = Task(
            id=f"task_{secrets.token_hex(8)}",
            position=len(self.job.tasks),
            kind=kind,
            party=party,
            dataset=dataset,
            state=TaskState.OPEN,
            attempt=1,
            fence=1,
            created_at=self.now,
        )
        self.job.tasks.append(task)
        self._session.flush()
        data = {"kind": kind, "party": party.name, "from": None, "state": task.state, "attempt": task.attempt}
        self.record("task", {**data, **self._by}, task)
        if party.removed_at is not None:
            task.reason = PARTY_GONE
            self._move_task(task, TaskEvent.EXPIRE, PARTY_GONE)

    def _end(self, event: JobEvent) -> None:
        self._move_job(event)
        for task in self.job.tasks:
            if task.state in (TaskState.OPEN, TaskState.LATE):
                self._move_task(task, TaskEvent.CANCEL, f"job.{self.job.state}")


def _rules(task: Task) -> Rules:
    return KINDS[task.kind].rules


def views(job: Job) -> list[TaskView]:
    """Return the job's tasks as the rules see them."""
    return [
        TaskView(
            rules=_rules(task),
            party=task.party.name,
            own=task.party.name == job.requester.name,
            state=TaskState(task.state),
            reason=task.reason,
            correlation_id=task.correlation_id,
        )
        for task in job.tasks
    ]


def missing(job: Job) -> list[Missing]:
    """Return the parties that were asked and have no column in the report."""
    return [Missing(party=party, reason=reason) for party, reason in missing_parties(JobState(job.state), views(job))]


def sweep_once(hub: HubContext) -> int:
    """Bring jobs with a lapsed lease or a passed deadline up to date; return how many.

    Any number of hubs may do this at once: each job is locked, and one that another hub has is left to it.
    """
    with hub.database.reading() as session:
        due = repository.due_jobs(session, hub.now(), timedelta(seconds=hub.settings.late_seconds))
    moved = 0
    for job_id in due:
        with hub.database.writing() as session:
            job = repository.lock_job(session, job_id, skip_locked=True)
            if job is not None:
                Lifecycle(hub, session, job, None).catch_up()
                moved += 1
    return moved


async def sweep_until_closing(hub: HubContext) -> None:
    """Sweep until the hub stops; an error is logged, and the next round tries again."""
    while not hub.closing.is_set():
        try:
            await run_in_threadpool(hub.set_clock)
            await run_in_threadpool(sweep_once, hub)
        except Exception:
            log.exception("sweep failed")
        with suppress(TimeoutError):
            await asyncio.wait_for(hub.closing.wait(), hub.settings.sweep_seconds)
