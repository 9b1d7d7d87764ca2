"""The state machine: what can happen, what follows, who is missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from suture_service.kinds import KINDS
from suture_service.states import (
    ACTIVE_JOBS,
    ACTIVE_TASKS,
    JOB_TRANSITIONS,
    TASK_TRANSITIONS,
    Fail,
    JobEvent,
    JobState,
    Move,
    NotPossible,
    TaskEvent,
    TaskState,
    TaskView,
    missing_parties,
    next_job_state,
    next_step,
    next_task_state,
    wanted,
)

#: Every edge there is, written out: a table that gains or loses one is not the same state machine.
JOB_EDGES = """
queued start fitting
queued match matching
matching matched contributing
contributing contributed fitting
fitting fitted evaluating
evaluating evaluated composing
composing composed complete
composing composed_partly partial
partial answered composing
queued fail failed
matching fail failed
contributing fail failed
fitting fail failed
evaluating fail failed
composing fail failed
queued cancel cancelled
matching cancel cancelled
contributing cancel cancelled
fitting cancel cancelled
evaluating cancel cancelled
composing cancel cancelled
failed retry fitting
failed match_again matching
"""
TASK_EDGES = """
open lease leased
late lease leased
leased requeue open
open defer late
leased defer late
failed defer late
expired defer late
leased complete done
leased fail failed
leased decline declined
open expire expired
leased expire expired
late expire expired
open cancel cancelled
leased cancel cancelled
late cancel cancelled
failed retry open
cancelled retry open
declined retry open
"""


def edges(table):
    return sorted(f"{state} {event} {after}" for (state, event), after in table.items())


def test_the_tables_are_exactly_what_is_written_here():
    assert edges(JOB_TRANSITIONS) == sorted(JOB_EDGES.split("\n")[1:-1])
    assert edges(TASK_TRANSITIONS) == sorted(TASK_EDGES.split("\n")[1:-1])


def test_an_edge_more_would_be_seen():
    assert edges({**JOB_TRANSITIONS, (JobState.QUEUED, JobEvent.COMPOSED): JobState.COMPLETE}) != edges(JOB_TRANSITIONS)


def test_what_is_not_in_the_tables_is_refused():
    for state, event in product(JobState, JobEvent):
        if (state, event) in JOB_TRANSITIONS:
            assert next_job_state(state, event) is JOB_TRANSITIONS[state, event]
        else:
            with pytest.raises(NotPossible):
                next_job_state(state, event)
    for state, event in product(TaskState, TaskEvent):
        if (state, event) in TASK_TRANSITIONS:
            assert next_task_state(state, event) is TASK_TRANSITIONS[state, event]
        else:
            with pytest.raises(NotPossible):
                next_task_state(state, event)
    with pytest.raises(NotPossible, match="lease is not possible for a task that is leased"):
        next_task_state(TaskState.LEASED, TaskEvent.LEASE)


def test_every_state_of_a_job_can_be_reached_and_left():
    reached, edge = {JobState.QUEUED}, [JobState.QUEUED]
    while edge:
        state = edge.pop()
        for event in JobEvent:
            try:
                after = next_job_state(state, event)
            except NotPossible:
                continue
            assert state in ACTIVE_JOBS or event in (JobEvent.RETRY, JobEvent.MATCH_AGAIN, JobEvent.ANSWERED)
            if after not in reached:
                reached.add(after)
                edge.append(after)
    assert reached == set(JobState)


def evaluation(party, state, reason=None):
    return TaskView(KINDS["evaluate"].rules, party, party == "north", state, reason)


def fit(state, reason=None):
    return TaskView(KINDS["fit"].rules, "north", True, state, reason, "c-1")


@pytest.mark.parametrize("state", [TaskState.OPEN, TaskState.LEASED])
def test_nothing_follows_from_work_that_goes_on(state):
    assert next_step(JobState.FITTING, [fit(state)]) is None
    north = evaluation("north", TaskState.DONE)
    assert next_step(JobState.EVALUATING, [north, evaluation("south", state)]) is None
    assert next_step(JobState.QUEUED, [fit(state)]) is None


def contribution(party, state):
    return TaskView(KINDS["contribute"].rules, party, False, state)


def test_what_follows_a_match():
    match = TaskView(KINDS["match"].rules, "north", True, TaskState.DONE)
    assert next_step(JobState.MATCHING, [match]) == Move(JobEvent.MATCHED)
    assert next_step(JobState.MATCHING, [replace(match, state=TaskState.LEASED)]) is None
    assert next_step(JobState.MATCHING, [replace(match, state=TaskState.FAILED, reason="x")]) == Fail("x")


@pytest.mark.parametrize("state", [TaskState.DONE, TaskState.FAILED, TaskState.DECLINED, TaskState.EXPIRED])
def test_the_fit_waits_for_contributions_but_needs_none(state):
    asked = [contribution("south", state), contribution("east", TaskState.DONE)]
    assert next_step(JobState.CONTRIBUTING, asked) == Move(JobEvent.CONTRIBUTED)
    assert next_step(JobState.CONTRIBUTING, [contribution("south", state)]) == Move(JobEvent.CONTRIBUTED)
    assert next_step(JobState.CONTRIBUTING, []) == Move(JobEvent.CONTRIBUTED)
    for active in ACTIVE_TASKS:
        assert next_step(JobState.CONTRIBUTING, [*asked, contribution("west", active)]) is None


def test_a_contribution_is_wanted_until_the_fit_begins():
    assert [state for state in JobState if wanted(state, KINDS["contribute"].rules)] == [JobState.CONTRIBUTING]


def test_what_follows_a_fit():
    assert next_step(JobState.FITTING, [fit(TaskState.DONE)]) == Move(JobEvent.FITTED)
    assert next_step(JobState.FITTING, [fit(TaskState.FAILED, "child.killed")]) == Fail("child.killed", "c-1")
    assert next_step(JobState.FITTING, [fit(TaskState.DECLINED, "policy.denied")]) == Fail("policy.denied", "c-1")


@pytest.mark.parametrize("state", [TaskState.DONE, TaskState.FAILED, TaskState.DECLINED, TaskState.EXPIRED])
def test_other_parties_never_stop_a_job(state):
    tasks = [fit(TaskState.DONE), evaluation("north", TaskState.DONE), evaluation("south", state, "x")]
    assert next_step(JobState.EVALUATING, tasks) == Move(JobEvent.EVALUATED)
    composed = [*tasks, TaskView(KINDS["compose"].rules, "north", True, TaskState.DONE)]
    end = JobEvent.COMPOSED if state is TaskState.DONE else JobEvent.COMPOSED_PARTLY
    assert next_step(JobState.COMPOSING, composed) == Move(end)


def test_without_its_own_evaluation_a_job_fails_at_once():
    tasks = [evaluation("north", TaskState.FAILED, "dataset.missing"), evaluation("south", TaskState.OPEN)]
    assert next_step(JobState.EVALUATING, tasks) == Fail("dataset.missing")


def test_why_a_party_is_missing():
    tasks = [
        evaluation("west", TaskState.EXPIRED),
        evaluation("south", TaskState.DECLINED, "policy.too_few_samples"),
        evaluation("east", TaskState.DECLINED, "policy.denied"),
        evaluation("coast", TaskState.FAILED, "policy.too_few_samples"),
        evaluation("north", TaskState.DONE),
        fit(TaskState.DECLINED),
    ]
    assert missing_parties(JobState.EVALUATING, tasks) == [
        ("coast", "failed"),
        ("east", "declined"),
        ("south", "too_few_samples"),
        ("west", "no_answer"),
    ]


@pytest.mark.parametrize("state", [TaskState.OPEN, TaskState.LEASED, TaskState.LATE, TaskState.EXPIRED])
def test_who_answers_late_is_missing_until_the_answer_is_there(state):
    tasks = [evaluation("north", TaskState.DONE), evaluation("south", state)]
    for job in (JobState.COMPOSING, JobState.PARTIAL):
        assert missing_parties(job, tasks) == [("south", "no_answer")]
    active = state in ACTIVE_TASKS
    assert missing_parties(JobState.EVALUATING, tasks) == ([] if active else [("south", "no_answer")])
    composed = [*tasks, TaskView(KINDS["compose"].rules, "north", True, TaskState.DONE)]
    assert next_step(JobState.COMPOSING, composed) == Move(JobEvent.COMPOSED_PARTLY)


def test_a_late_party_does_not_keep_a_job_waiting():
    tasks = [evaluation("north", TaskState.DONE), evaluation("south", TaskState.LATE)]
    assert next_step(JobState.EVALUATING, tasks) == Move(JobEvent.EVALUATED)


def test_what_was_published_stays_where_composing_anew_fails():
    def compose(state):
        return TaskView(KINDS["compose"].rules, "north", True, state, "child.killed")

    tasks = [evaluation("north", TaskState.DONE), evaluation("south", TaskState.DONE)]
    assert next_step(JobState.COMPOSING, [*tasks, compose(TaskState.FAILED)]) == Fail("child.killed")
    assert next_step(JobState.COMPOSING, [*tasks, compose(TaskState.DONE), compose(TaskState.OPEN)]) is None
    again = [*tasks, compose(TaskState.DONE), compose(TaskState.FAILED)]
    assert next_step(JobState.COMPOSING, again) == Move(JobEvent.COMPOSED)


def test_after_the_end_only_late_evaluations_are_wanted():
    assert all(wanted(state, KINDS[kind].rules) for state in ACTIVE_JOBS for kind in ("fit", "evaluate", "compose"))
    assert wanted(JobState.PARTIAL, KINDS["evaluate"].rules)
    assert not wanted(JobState.PARTIAL, KINDS["compose"].rules)
    for state in (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED):
        assert not wanted(state, KINDS["evaluate"].rules)
