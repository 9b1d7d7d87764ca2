"""Parties that answer after their job has ended: another revision with another version of the report, never a silent
change; and parties that let nobody know whether they will."""

from __future__ import annotations

import pytest
from tests.service.jobs import refusal

MONTH = 30 * 86400


@pytest.fixture
def partial(world):
    """A job of north that ended without south and east."""
    job = world.ask(evaluate_at=["south", "east"], evaluate_within=300).json()
    world.fit()
    world.evaluate("north")
    world.later(301)
    world.compose()
    assert world.job(job)["state"] == "partial"
    return job


def reason_of(job, party):
    return next(task["reason"] for task in job["tasks"] if (task["kind"], task["party"]) == ("evaluate", party))


def state_of(job, party):
    return next(task["state"] for task in job["tasks"] if (task["kind"], task["party"]) == ("evaluate", party))


def test_an_answer_after_a_month_gives_another_revision(world, partial):
    before = world.job(partial)
    assert (state_of(before, "south"), len(before["results"])) == ("late", 1)
    world.later(MONTH)
    world.evaluate("south")
    assert world.job(partial)["state"] == "composing"
    assert world.job(partial)["result"] == before["result"]
    world.later(1)
    spec = world.compose()["spec"]
    assert (spec["version"], spec["revised"]) == (2, {"before": "c03", "added": ["south"]})
    assert set(spec["evaluations"]) == {"north", "south"}
    done = world.job(partial)
    assert (done["state"], done["missing"]) == ("partial", [{"party": "east", "reason": "no_answer"}])
    assert [result["version"] for result in done["results"]] == [1, 2]
    assert done["results"][0] == before["result"]
    assert done["result"] == done["results"][1]
    assert done["results"][0]["revision"] != done["results"][1]["revision"]
    assert world.north.get(f"/v1/jobs/{partial['id']}/report").json()["version"] == 2
    world.later(1)
    world.evaluate("east")
    world.later(1)
    assert world.compose()["spec"]["revised"] == {"before": "c03", "added": ["east"]}
    done = world.job(partial)
    assert (done["state"], done["missing"], len(done["results"])) == ("complete", [], 3)


def test_a_lapsed_late_lease_is_late_again(world, partial):
    task = world.sites["south"].lease()
    assert task["kind"] == "evaluate"
    assert world.job(partial)["missing"] == [{"party": p, "reason": "no_answer"} for p in ("east", "south")]
    assert world.sites["south"].tell(task, "heartbeat").json()["cancel"] is False
    world.later(120)
    assert (world.job(partial)["state"], state_of(world.job(partial), "south")) == ("partial", "late")
    assert refusal(world.sites["south"].tell(task, "heartbeat"), 409)["code"] == "task.fenced"
    again = world.sites["south"].lease()
    assert (again["id"], again["attempt"]) == (task["id"], 2)


def test_an_answer_while_another_one_is_composed_is_composed_with_it(world, partial):
    south, east = world.sites["south"].lease(), world.sites["east"].lease()
    for site, task in (("south", south), ("east", east)):
        if site == "east":
            composing = world.sites["north"].lease()
            assert composing["kind"] == "compose"
        document = world.evaluation_of(task)
        assert world.sites[site].tell(task, "result", document=document).status_code == 200
    assert refusal(world.sites["north"].tell(composing, "heartbeat"), 409)["code"] == "task.fenced"
    world.later(1)
    spec = world.compose()["spec"]
    assert spec["revised"]["added"] == ["east", "south"]
    assert (world.job(partial)["state"], len(world.job(partial)["results"])) == ("complete", 2)


def test_a_report_must_say_what_changed(world, partial):
    world.later(1)
    world.evaluate("south")
    site = world.sites["north"]
    for wrong in ({"version": 1}, {"revised": None}, {"revised": {"before": "c02", "added": ["south"]}}):
        task = site.lease()
        world.put_composed(task, report=wrong)
        answer = site.tell(task, "result", document={"chosen": "c03"})
        assert answer.status_code in (400, 409, 422)
        assert answer.json()["error"]["code"] == "report.mismatch"
        assert site.tell(task, "fail", code="x.y", correlation_id="c-1", retryable=True).status_code == 200


def test_composing_anew_that_fails_leaves_what_was_published(world, partial):
    before = world.job(partial)["results"]
    world.later(1)
    world.evaluate("south")
    task = world.sites["north"].lease()
    answer = world.sites["north"].tell(task, "fail", code="child.killed", correlation_id="c-1", retryable=False)
    assert answer.status_code == 200
    assert (world.job(partial)["state"], world.job(partial)["results"]) == ("partial", before)


def test_after_three_months_nobody_is_asked_any_more(world, partial):
    world.later(91 * 86400)
    assert state_of(world.job(partial), "south") == "expired"
    assert world.sites["south"].lease() is None


def test_a_late_refusal_changes_no_report(world, partial):
    task = world.sites["south"].lease()
    assert world.sites["south"].tell(task, "decline", code="policy.denied").json()["state"] == "declined"
    done = world.job(partial)
    assert (done["state"], len(done["results"])) == ("partial", 1)
    assert {"party": "south", "reason": "declined"} in done["missing"]


def test_an_undisclosed_refusal_looks_like_no_answer(world):
    job = world.ask(evaluate_at=["south", "east"], evaluate_within=300).json()
    world.fit()
    world.evaluate("north")
    task = world.sites["south"].lease()
    assert world.sites["south"].tell(task, "decline", code="policy.undisclosed").status_code == 200
    assert world.sites["south"].lease() is None
    found = world.job(job)
    assert (found["state"], found["missing"]) == ("evaluating", [])
    assert [(state_of(found, p), reason_of(found, p)) for p in ("south", "east")] == [("open", None)] * 2
    world.later(301)
    world.compose()
    found = world.job(job)
    assert found["missing"] == [{"party": p, "reason": "no_answer"} for p in ("east", "south")]
    assert {(state_of(found, p), reason_of(found, p)) for p in ("south", "east")} == {("late", "task.no_answer")}
    assert world.sites["south"].lease() is None
    assert "undisclosed" not in world.north.get(f"/v1/jobs/{job['id']}/events").text
