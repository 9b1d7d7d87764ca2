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

from suture_contract.kinds import Kind


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
MissingReason = Literal["declined", "no_answer", "too_few_samples", "failed"]
#: The job has been composed without those that have not answered, or is about to be.
EVALUATED_JOBS = frozenset({JobState.COMPOSING, JobState.COMPLETE, JobState.PARTIAL})


class Overdue(StrEnum):
    """What becomes of a task whose party has not answered in time."""

    #: It is the requester's own, and without it the job cannot go on.
    WAITED_FOR = "waited_for"
    #: The job goes on, and wants no answer any more.
    LEFT_OUT = "left_out"
    #: The job goes on, the report names the party, and an answer leads to another report.
    LATE = "late"


@dataclass(frozen=True)
class Rules:
    """A kind of task for this module: `during` which state of a job there are such tasks, and what if one is overdue.

    The requester's own task must be done; without another party's the job goes on.
    """

    kind: Kind
    during: JobState
    overdue: Overdue


@dataclass(frozen=True)
class TaskView:
    """What follows from a task depends on this; `own` if its party is the requester."""

    rules: Rules
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


#: What happens to a job once nothing is left to wait for; the end of composing depends on who is missing.
_FOLLOWS: dict[JobState, JobEvent] = {
    JobState.MATCHING: JobEvent.MATCHED,
    JobState.CONTRIBUTING: JobEvent.CONTRIBUTED,
    JobState.FITTING: JobEvent.FITTED,
    JobState.EVALUATING: JobEvent.EVALUATED,
    JobState.COMPOSING: JobEvent.COMPOSED,
}
#: With which events a job begins, or is tried again, at the state where its first task belongs.
BEGINNINGS: dict[JobState, tuple[JobEvent, JobEvent]] = {
    JobState.MATCHING: (JobEvent.MATCH, JobEvent.MATCH_AGAIN),
    JobState.FITTING: (JobEvent.START, JobEvent.RETRY),
}


def next_step(state: JobState, tasks: Sequence[TaskView]) -> Step:
    """Say what follows from the states of a job's tasks; None while there is something to wait for."""
    if state not in _FOLLOWS:
        return None
    present = [task for task in tasks if task.rules.during is state]
    own: dict[Rules, list[TaskView]] = {}
    for task in present:
        if task.own:
            own.setdefault(task.rules, []).append(task)
    for attempts in own.values():
        # What has been published stays, also where composing it anew has failed.
        if attempts[-1].state not in ACTIVE_TASKS and all(task.state is not TaskState.DONE for task in attempts):
            return _failure(attempts[-1])
    if any(task.state in ACTIVE_TASKS for task in present):
        return None
    if state is JobState.COMPOSING and missing_parties(state, tasks):
        return Move(JobEvent.COMPOSED_PARTLY)
    return Move(_FOLLOWS[state])


def _failure(task: TaskView) -> Fail:
    return Fail(task.reason or f"task.{task.state}", task.correlation_id)


def wanted(state: JobState, rules: Rules) -> bool:
    """Say whether a job in this state still wants the result of a task with these rules."""
    if rules.overdue is Overdue.LEFT_OUT:
        return state is rules.during
    return state in ACTIVE_JOBS or (rules.overdue is Overdue.LATE and state is JobState.PARTIAL)


def passed_over(rules: Rules, others: Iterable[Rules]) -> bool:
    """Say whether a job with tasks of `others` goes on without such a task, so that it is not tried again."""
    order = list(_FOLLOWS)
    return rules.overdue is Overdue.LEFT_OUT and any(
        order.index(rules.during) < order.index(other.during) for other in others
    )


def missing_parties(state: JobState, tasks: Iterable[TaskView]) -> list[tuple[str, MissingReason]]:
    """Return the parties whose answers the report lacks, with the reason others are told; by name.

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
        if task.rules.overdue is Overdue.LATE and task.state in reasons:
            few = task.state is TaskState.DECLINED and task.reason == "policy.too_few_samples"
            missing.append((task.party, "too_few_samples" if few else reasons[task.state]))
    return sorted(missing)
