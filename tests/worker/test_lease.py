"""Leased tasks come from outside: what is not in order is refused, what is new is left aside."""

from __future__ import annotations

import pytest

from suture_contract.errors import SutureError
from suture_worker.leased_task import Claim, ComposeSpec, EvaluateSpec, FitSpec, LeasedTask, claim_of


@pytest.mark.parametrize(("kind", "spec"), [("fit", FitSpec), ("evaluate", EvaluateSpec), ("compose", ComposeSpec)])
def test_a_task_survives_being_written(make, kind, spec):
    task = LeasedTask.parse(make.leased(kind))
    assert type(task.spec) is spec
    assert LeasedTask.from_json(task.to_json()) == task
    assert task.claim == Claim(f"task_{kind}", 1, "north", "job_1")


def test_unknown_fields_are_left_aside(make):
    task = {**make.leased("fit"), "colour": "red"}
    task["spec"]["shape"] = "round"
    assert LeasedTask.parse(task) == LeasedTask.parse(make.leased("fit"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../etc"},
        {"id": "a/b"},
        {"id": ""},
        {"kind": "train"},
        {"fence": "x"},
        {"spec": {}},
        {"spec": None},
        {"lease_seconds": 0},
        {"job": {"id": "../x", "requester": "north"}},
        {"job": {"id": "job_1", "requester": "no/rth"}},
    ],
)
def test_what_is_not_in_order_is_refused(make, change):
    with pytest.raises(SutureError) as caught:
        LeasedTask.parse({**make.leased("fit"), **change})
    assert caught.value.code == "task.invalid"


@pytest.mark.parametrize(
    "change", [{"sha256": "../x"}, {"repo": "north"}, {"size": 0}, {"size": 2**40}, {"metadata": {"schema": "x"}}]
)
def test_members_are_checked(make, change):
    with pytest.raises(SutureError):
        LeasedTask.parse(make.leased("fit", members=[make.member(0), make.member(1, **change)]))


@pytest.mark.parametrize("kind", ["match", "fit"])
def test_options_that_no_fit_has_are_refused_before_a_model_is_fetched(make, kind):
    leased = make.leased(kind, options={"sed": 3})
    with pytest.raises(SutureError, match="did you mean 'seed'") as caught:
        LeasedTask.parse(leased)
    assert caught.value.code == "job.options"
    assert claim_of(leased) == Claim(f"task_{kind}", 1, "north", "job_1")


def test_own_must_be_a_member(make):
    with pytest.raises(SutureError, match="own"):
        LeasedTask.parse(make.leased("evaluate", own=2))


def test_anything_at_all_is_refused_with_an_error_of_ours():
    for content in (None, [], 3, "x", {}, {"spec": 3, "kind": "fit"}, {"kind": ["fit"]}):
        with pytest.raises(SutureError):
            LeasedTask.parse(content)


def test_a_task_that_cannot_be_read_can_still_be_given_back(make):
    assert claim_of({**make.leased("fit"), "spec": 3}) == Claim("task_fit", 1, "north", "job_1")
    assert claim_of({"id": "../x", "fence": 1}) is None
    assert claim_of({"id": "task_1"}) is None
    assert claim_of([]) is None
