"""How a job moves: every change of a job or task is made here, and recorded as an event in the same transaction."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, cast

import structlog
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from suture_service.hub import Hub
from suture_service.jobs import repository
from suture_service.jobs.states import (
    ACTIVE_JOBS,
    ACTIVE_TASKS,
    Fail,
    JobEvent,
    JobState,
    Kind,
    TaskEvent,
    TaskState,
    TaskView,
    missing_parties,
    next_job_state,
    next_step,
    next_task_state,
)
from suture_service.parties.repository import find_party
from suture_service.tables import Event, Job, Party, Task
from suture_stitching.documents import Missing

log = structlog.get_logger(__name__)


class Flow:
    """One job, locked (`repository.lock_job`), within one transaction."""

    def __init__(self, hub: Hub, session: Session, job: Job) -> None:
        self._hub = hub
        self._session = session
        self.job = job
        self.now = hub.now()

    @property
    def active(self) -> bool:
        """Whether the job has not ended."""
        return self.job.state in ACTIVE_JOBS

    def begin(self) -> None:
        """Record the new job and add its `fit` task."""
        self.record("job", {"state": self.job.state})
        self._add_task("fit", self.job.requester, self.job.dataset)

    def lease(self, task: Task, site_id: int) -> None:
        """Give an open task to a site."""
        task.site_id = site_id
        task.progress = None
        task.lease_expires_at = self.lease_end()
        self._move_task(task, TaskEvent.LEASE)
        self._hub.metrics.leased.labels(task.kind).inc()
        if self.job.state == JobState.QUEUED:
            self._move_job(JobEvent.START)

    def complete(self, task: Task, document: dict[str, Any]) -> None:
        """End a leased task with its result."""
        task.result = document
        self._move_task(task, TaskEvent.COMPLETE)
        self._advance()

    def fail(self, task: Task, code: str, correlation_id: str | None, *, retryable: bool) -> None:
        """End a leased task without a result, or open it again if that may help."""
        task.reason, task.correlation_id = code, correlation_id
        if not self.active:
            self._move_task(task, TaskEvent.CANCEL)
        elif retryable and task.attempt < self._hub.settings.max_attempts:
            self._requeue(task)
        else:
            self._move_task(task, TaskEvent.FAIL)
        self._advance()

    def decline(self, task: Task, code: str) -> None:
        """End a leased task that the site's policy does not allow."""
        task.reason = code
        self._move_task(task, TaskEvent.DECLINE if self.active else TaskEvent.CANCEL)
        self._advance()

    def progress(self, task: Task, progress: dict[str, Any]) -> None:
        """Record how far a leased task is."""
        task.progress = progress
        repository.drop_progress(self._session, self.job.id, task.id)
        self.record("progress", progress, task)

    def cancel(self) -> None:
        """End the job; open tasks end with it, sites that hold a lease hear of it at their next heartbeat."""
        self._end(JobEvent.CANCEL)

    def catch_up(self) -> None:
        """Do what time has brought: lapsed leases, and parties that did not answer in time."""
        job = self.job
        for task in job.tasks:
            if task.state == TaskState.LEASED and task.lease_expires_at and task.lease_expires_at < self.now:
                self._hub.metrics.lapsed.inc()
                self._lapse(task)
        if job.state == JobState.EVALUATING and job.answer_by is not None and job.answer_by < self.now:
            for task in job.tasks:
                if task.kind == "evaluate" and task.party_id != job.requester_id and task.state in ACTIVE_TASKS:
                    task.reason = "task.no_answer"
                    self._move_task(task, TaskEvent.EXPIRE)
        self._advance()

    def lease_end(self) -> datetime:
        """Return when a lease that is given or renewed now ends."""
        return self.now + timedelta(seconds=self._hub.settings.lease_seconds)

    def record(self, kind: str, data: dict[str, Any], task: Task | None = None) -> None:
        """Add an event to the job's history."""
        self.job.last_seq += 1
        task_id = task.id if task is not None else None
        self._session.add(
            Event(job_id=self.job.id, seq=self.job.last_seq, at=self.now, task_id=task_id, kind=kind, data=data)
        )

    def _lapse(self, task: Task) -> None:
        if not self.active:
            self._move_task(task, TaskEvent.CANCEL)
        elif task.attempt < self._hub.settings.max_attempts:
            self._requeue(task)
        else:
            task.reason = "task.attempts_exhausted"
            self._move_task(task, TaskEvent.FAIL)

    def _requeue(self, task: Task) -> None:
        task.attempt += 1
        task.fence += 1
        task.site_id = task.lease_expires_at = task.progress = None
        self._move_task(task, TaskEvent.REQUEUE)

    def _move_task(self, task: Task, event: TaskEvent) -> None:
        task.state = next_task_state(TaskState(task.state), event)
        data = {"kind": task.kind, "party": task.party.name, "state": task.state, "attempt": task.attempt}
        if task.state not in ACTIVE_TASKS:
            task.finished_at = self.now
            self._hub.metrics.ended.labels(task.kind, task.state).inc()
        if task.reason is not None and event is not TaskEvent.LEASE:
            data["reason"] = task.reason
        self.record("task", data, task)

    def _move_job(self, event: JobEvent) -> None:
        job = self.job
        job.state = next_job_state(JobState(job.state), event)
        data: dict[str, Any] = {"state": job.state}
        if job.state not in ACTIVE_JOBS:
            job.finished_at = self.now
            self._hub.metrics.jobs.labels(job.state).inc()
            if job.error_code is not None:
                data["error"] = {"code": job.error_code, "correlation_id": job.error_correlation_id}
        self.record("job", data)

    def _advance(self) -> None:
        while self.active and (step := next_step(JobState(self.job.state), views(self.job))) is not None:
            if isinstance(step, Fail):
                self.job.error_code, self.job.error_correlation_id = step.code, step.correlation_id
                self._end(JobEvent.FAIL)
                return
            self._move_job(step.event)
            if step.event is JobEvent.FITTED:
                self._ask_parties()
            elif step.event is JobEvent.EVALUATED:
                self._add_task("compose", self.job.requester, None)

    def _ask_parties(self) -> None:
        job = self.job
        job.answer_by = self.now + timedelta(seconds=job.evaluate_within)
        asked = {entry["party"]: entry["dataset"] for entry in job.evaluate_at}
        own_dataset = asked.pop(job.requester.name, None)
        self._add_task("evaluate", job.requester, own_dataset or job.dataset)
        for name, dataset in asked.items():
            party = find_party(self._session, name)
            assert party is not None, "parties are never removed"
            self._add_task("evaluate", party, dataset)

    def _add_task(self, kind: Kind, party: Party, dataset: str | None) -> None:
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
        self.record("task", {"kind": kind, "party": party.name, "state": task.state, "attempt": task.attempt}, task)

    def _end(self, event: JobEvent) -> None:
        self._move_job(event)
        for task in self.job.tasks:
            if task.state == TaskState.OPEN:
                self._move_task(task, TaskEvent.CANCEL)


def views(job: Job) -> list[TaskView]:
    """Return the job's tasks as the rules see them."""
    return [
        TaskView(
            kind=cast(Kind, task.kind),
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
    return [Missing(party=party, reason=reason) for party, reason in missing_parties(views(job))]


def sweep_once(hub: Hub) -> int:
    """Bring jobs with a lapsed lease or a passed deadline up to date; return how many.

    Any number of hubs may do this at once: each job is locked, and one that another hub has is left to it.
    """
    with hub.database.reading() as session:
        due = repository.due_jobs(session, hub.now())
    moved = 0
    for job_id in due:
        with hub.database.writing() as session:
            job = repository.lock_job(session, job_id, skip_locked=True)
            if job is not None:
                Flow(hub, session, job).catch_up()
                moved += 1
    return moved


async def sweep_until_closing(hub: Hub) -> None:
    """Sweep until the hub stops; an error is logged, and the next round tries again."""
    while not hub.closing.is_set():
        try:
            await run_in_threadpool(sweep_once, hub)
        except Exception:
            log.exception("sweep failed")
        with suppress(TimeoutError):
            await asyncio.wait_for(hub.closing.wait(), hub.settings.sweep_seconds)
