"""The states of jobs and tasks, and what follows when a task ends. Pure: no database, no clock.

job:   queued -> fitting -> evaluating -> composing -> complete | partial      (failed, cancelled from any of them)
       queued -> matching -> contributing -> fitting                           (where parties are asked to contribute)
task:  open <-> leased -> done | failed | declined          (expired, cancelled from open and leased)

A party that has not answered in time is late: the job goes on without it and ends as partial, but the task can still
be leased for long. With its answer the job composes anew: partial -> composing.

Parties that shall contribute are asked once the requester's site knows where the models can be joined; who has not
answered in time, or not at all, is left out of the fit.

A failed job may be tried again: it is fitting (matching), passes over what is done, and its failed tasks are open. Of a
partial one, the tasks of parties that failed or did not answer become late, as if they were still waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Literal, TypeAlias


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    MATCHING = "matching"
    CONTRIBUTING = "contributing"
    FITTING = "fitting"
    EVALUATING = "evaluating"
    COMPOSING = "composing"
    COMPLETE = "complete"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobEvent(StrEnum):
    """What can happen to a job."""

    START = "start"
    MATCH = "match"
    MATCHED = "matched"
    CONTRIBUTED = "contributed"
    FITTED = "fitted"
    EVALUATED = "evaluated"
    COMPOSED = "composed"
    COMPOSED_PARTLY = "composed_partly"
    ANSWERED = "answered"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    MATCH_AGAIN = "match_again"


class TaskState(StrEnum):
    """Where a task is."""

    OPEN = "open"
    LEASED = "leased"
    LATE = "late"
    DONE = "done"
    FAILED = "failed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class TaskEvent(StrEnum):
    """What can happen to a task."""

    LEASE = "lease"
    REQUEUE = "requeue"
    DEFER = "defer"
    COMPLETE = "complete"
    FAIL = "fail"
    DECLINE = "decline"
    EXPIRE = "expire"
    CANCEL = "cancel"
    RETRY = "retry"


ACTIVE_JOBS = frozenset(
    {
        JobState.QUEUED,
        JobState.MATCHING,
        JobState.CONTRIBUTING,
        JobState.FITTING,
        JobState.EVALUATING,
        JobState.COMPOSING,
    }
)
ACTIVE_TASKS = frozenset({TaskState.OPEN, TaskState.LEASED})
#: So long after its end a failed job can be tried again, and what its tasks left is kept.
KEPT = timedelta(days=90)

JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.START): JobState.FITTING,
    (JobState.QUEUED, JobEvent.MATCH): JobState.MATCHING,
    (JobState.MATCHING, JobEvent.MATCHED): JobState.CONTRIBUTING,
    (JobState.CONTRIBUTING, JobEvent.CONTRIBUTED): JobState.FITTING,
    (JobState.FITTING, JobEvent.FITTED): JobState.EVALUATING,
    (JobState.EVALUATING, JobEvent.EVALUATED): JobState.COMPOSING,
    (JobState.COMPOSING, JobEvent.COMPOSED): JobState.COMPLETE,
    (JobState.COMPOSING, JobEvent.COMPOSED_PARTLY): JobState.PARTIAL,
    (JobState.PARTIAL, JobEvent.ANSWERED): JobState.COMPOSING,
    **{(state, JobEvent.FAIL): JobState.FAILED for state in ACTIVE_JOBS},
    **{(state, JobEvent.CANCEL): JobState.CANCELLED for state in ACTIVE_JOBS},
    (JobState.FAILED, JobEvent.RETRY): JobState.FITTING,
    (JobState.FAILED, JobEvent.MATCH_AGAIN): JobState.MATCHING,
}

TASK_TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (TaskState.OPEN, TaskEvent.LEASE): TaskState.LEASED,
    (TaskState.LEASED, TaskEvent.REQUEUE): TaskState.OPEN,
    (TaskState.LATE, TaskEvent.LEASE): TaskState.LEASED,
    **{(state, TaskEvent.DEFER): TaskState.LATE for state in (*ACTIVE_TASKS, TaskState.FAILED, TaskState.EXPIRED)},
    (TaskState.LEASED, TaskEvent.COMPLETE): TaskState.DONE,
    (TaskState.LEASED, TaskEvent.FAIL): TaskState.FAILED,
    (TaskState.LEASED, TaskEvent.DECLINE): TaskState.DECLINED,
    **{(state, TaskEvent.EXPIRE): TaskState.EXPIRED for state in (*ACTIVE_TASKS, TaskState.LATE)},
    **{(state, TaskEvent.CANCEL): TaskState.CANCELLED for state in (*ACTIVE_TASKS, TaskState.LATE)},
    **{
        (state, TaskEvent.RETRY): TaskState.OPEN
        for state in (TaskState.FAILED, TaskState.CANCELLED, TaskState.DECLINED)
    },
}


class NotPossible(Exception):
    """This cannot happen to something in this state."""


def next_job_state(state: JobState, event: JobEvent) -> JobState:
    """Return the state after `event`; raises `NotPossible`."""
    if (state, event) not in JOB_TRANSITIONS:
        raise NotPossible(f"{event} is not possible for a job that is {state}")
    return JOB_TRANSITIONS[state, event]


def next_task_state(state: TaskState, event: TaskEvent) -> TaskState:
    """Return the state after `event`; raises `NotPossible`."""
    if (state, event) not in TASK_TRANSITIONS:
        raise NotPossible(f"{event} is not possible for a task that is {state}")
    return TASK_TRANSITIONS[state, event]


#: With this code a party declines without anybody being told: it is as if it did not answer.
UNDISCLOSED = "policy.undisclosed"
Kind = Literal["match", "contribute", "fit", "evaluate", "compose"]
MissingReason = Literal["declined", "no_answer", "too_few_samples", "failed"]
#: The job has been composed without those that have not answered, or is about to be.
EVALUATED_JOBS = frozenset({JobState.COMPOSING, JobState.COMPLETE, JobState.PARTIAL})


@dataclass(frozen=True)
class TaskView:
    """What the rules below need to know of a task; `own` if its party is the requester."""

    kind: Kind
    party: str
    own: bool
    state: TaskState
    reason: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True)
class Move:
    """The job goes on with this event."""

    event: JobEvent


@dataclass(frozen=True)
class Fail:
    """The job cannot go on, for this reason."""

    code: str
    correlation_id: str | None = None


Step: TypeAlias = "Move | Fail | None"


#: States in which the requester's site alone works: at which kind of task, and what follows, if only one thing can.
_ONE_TASK: dict[JobState, tuple[Kind, JobEvent | None]] = {
    JobState.MATCHING: ("match", JobEvent.MATCHED),
    JobState.FITTING: ("fit", JobEvent.FITTED),
    JobState.COMPOSING: ("compose", None),
}


def next_step(state: JobState, tasks: Sequence[TaskView]) -> Step:
    """Say what follows from the states of a job's tasks; None while there is something to wait for."""
    if state in _ONE_TASK:
        kind, follows = _ONE_TASK[state]
        done = [task for task in tasks if task.kind == kind]
        task = done[-1]
        if task.state in ACTIVE_TASKS:
            return None
        # What has been published stays, also where composing it anew has failed.
        if all(task.state is not TaskState.DONE for task in done):
            return _failure(task)
        if follows is not None:
            return Move(follows)
        return Move(JobEvent.COMPOSED_PARTLY if missing_parties(state, tasks) else JobEvent.COMPOSED)
    if state is JobState.CONTRIBUTING:
        asked = [task for task in tasks if task.kind == "contribute"]
        return Move(JobEvent.CONTRIBUTED) if all(task.state not in ACTIVE_TASKS for task in asked) else None
    if state is JobState.EVALUATING:
        evaluations = [task for task in tasks if task.kind == "evaluate"]
        for task in evaluations:
            if task.own and task.state not in ACTIVE_TASKS and task.state is not TaskState.DONE:
                return _failure(task)
        if all(task.state not in ACTIVE_TASKS for task in evaluations):
            return Move(JobEvent.EVALUATED)
    return None


def _failure(task: TaskView) -> Fail:
    return Fail(task.reason or f"task.{task.state}", task.correlation_id)


def wanted(state: JobState, kind: str) -> bool:
    """Say whether a job in this state still wants the result of a task of this kind."""
    if kind == "contribute":
        return state is JobState.CONTRIBUTING
    return state in ACTIVE_JOBS or (kind == "evaluate" and state is JobState.PARTIAL)


def missing_parties(state: JobState, tasks: Iterable[TaskView]) -> list[tuple[str, MissingReason]]:
    """Return the parties that were asked to evaluate and have not, with the reason others are told; by name.

    `state` is the job's: after evaluating, who works on a late answer is missing as long as it is not there.
    """
    reasons: dict[TaskState, MissingReason] = {
        TaskState.DECLINED: "declined",
        TaskState.FAILED: "failed",
        TaskState.EXPIRED: "no_answer",
        TaskState.LATE: "no_answer",
    }
    if state in EVALUATED_JOBS:
        reasons |= dict.fromkeys(ACTIVE_TASKS, "no_answer")
    missing: list[tuple[str, MissingReason]] = []
    for task in tasks:
        if task.kind == "evaluate" and task.state in reasons:
            few = task.state is TaskState.DECLINED and task.reason == "policy.too_few_samples"
            missing.append((task.party, "too_few_samples" if few else reasons[task.state]))
    return sorted(missing)
