"""Parties that contribute moments to a fit: asked before it, visible to nobody but who fits, and never in its way."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from tests.service.jobs import refusal

PLACES = [{"0": "n1", "1": "n2"}]
MATCHED = {"n": 412, "placements": PLACES, "norms": [2.5]}
SAMPLES = {"train": 300, "validation": 80}


def moments(task: Any, *, n: Any = None, privacy: Any = None, **changes: Any) -> bytes:
    """A contribution's file for a leased task."""
    described = {
        "schema": "suture.moments/1",
        "members": [member["sha256"] for member in task["spec"]["members"]],
        "placements": task["spec"]["placements"],
        "n": n or SAMPLES,
        **({"privacy": privacy} if privacy else {}),
        **changes,
    }
    header = json.dumps(
        {
            "__metadata__": {"described": json.dumps(described)},
            "0.1.train.mean": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def contribute(world: Any, party: str, **changes: Any) -> Any:
    site = world.sites[party]
    task = site.lease()
    assert task["kind"] == "contribute"
    assert site.put(task, "moments.safetensors", moments(task, **changes)).status_code == 200
    assert site.tell(task, "result", document={"n": SAMPLES, "patients": SAMPLES}).status_code == 200
    return task


def match(world: Any, **changes: Any) -> Any:
    task = world.sites["north"].lease()
    assert task["kind"] == "match"
    answer = world.sites["north"].tell(task, "result", document={**MATCHED, **changes})
    assert answer.status_code == 200, answer.text
    return task


def tasks(job: Any) -> list[tuple[str, str, str]]:
    return [(task["kind"], task["party"], task["state"]) for task in job["tasks"]]


@pytest.fixture
def asked(world):
    answer = world.ask(contribute_from=["south/scans", "east"], evaluate_within=300)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_contributions_come_before_the_fit_and_are_named_in_it(world, asked):
    assert (asked["state"], asked["contribute_from"]) == ("queued", ["south/scans", "east"])
    task = match(world)
    assert task["spec"].keys() == {"members", "dataset", "options"}
    assert world.job(asked)["state"] == "contributing"
    assert world.sites["north"].lease() is None
    task = contribute(world, "south")
    assert (task["spec"]["dataset"], task["spec"]["placements"], task["spec"]["norms"]) == ("scans", PLACES, [2.5])
    assert world.sites["north"].lease() is None
    declined = world.sites["east"].lease()
    assert declined["spec"]["dataset"] is None
    assert world.sites["east"].tell(declined, "decline", code="policy.denied").status_code == 200
    assert world.job(asked)["state"] == "fitting"
    # South's file is there for the site that fits, as long as it fits, and for nobody else.
    path = f"/v1/jobs/{asked['id']}/files/moments.south"
    everyone = [world.north, world.south, world.sites["north"], world.sites["south"], world.sites["east"]]
    assert {actor.get(path).status_code for actor in everyone} == {404}
    task = world.sites["north"].lease()
    assert (task["kind"], set(task["spec"]["contributions"])) == ("fit", {"south"})
    given = task["spec"]["contributions"]["south"]
    assert {actor.get(path).status_code for actor in everyone if actor is not world.sites["north"]} == {404}
    content = world.sites["north"].get(path)
    assert (content.status_code, len(content.content)) == (200, given["size"])
    assert given["n"] == SAMPLES


def test_the_report_may_name_those_who_contributed_and_nobody_else(world, asked):
    match(world)
    contribute(world, "south")
    world.sites["east"].tell(world.sites["east"].lease(), "decline", code="policy.denied")
    site = world.sites["north"]
    task = site.lease()
    for wrong in ({"party": "east", "n": SAMPLES}, {"party": "south", "n": {**SAMPLES, "train": 1}}):
        candidates = json.dumps(world.candidates_of(task, contributions=[wrong])).encode()
        assert site.put(task, "candidates.json", candidates).status_code == 200
        assert site.put(task, "stitches.safetensors", world.STITCHES).status_code == 200
        assert refusal(site.tell(task, "result", document={"n": 412}), 422)["code"] == "candidates.mismatch"
    candidates = json.dumps(world.candidates_of(task, contributions=[{"party": "south", "n": SAMPLES}])).encode()
    assert site.put(task, "candidates.json", candidates).status_code == 200
    assert site.tell(task, "result", document={"n": 412}).status_code == 200
    assert world.job(asked)["state"] == "evaluating"
    assert site.get(f"/v1/jobs/{asked['id']}/files/moments.south").status_code == 404


def test_who_does_not_answer_in_time_is_left_out(world, asked):
    match(world)
    held = world.sites["east"].lease()
    world.later(301)
    job = world.job(asked)
    assert job["state"] == "fitting"
    assert tasks(job)[1:] == [
        ("contribute", "south", "expired"),
        ("contribute", "east", "expired"),
        ("fit", "north", "open"),
    ]
    assert refusal(world.sites["east"].tell(held, "heartbeat"), 409)["code"] == "task.fenced"
    assert world.sites["south"].lease() is None
    world.fit()
    assert {task["kind"] for task in world.job(asked)["tasks"] if task["state"] == "open"} == {"evaluate"}


def test_who_lets_nobody_know_looks_as_if_there_were_no_answer(world, asked):
    match(world)
    contribute(world, "south")
    task = world.sites["east"].lease()
    world.sites["east"].tell(task, "decline", code="policy.undisclosed")
    job = world.job(asked)
    assert (tasks(job)[2], job["tasks"][2]["reason"]) == (("contribute", "east", "open"), None)
    assert world.sites["east"].lease() is None
    world.later(301)
    job = world.job(asked)
    assert (tasks(job)[2], job["tasks"][2]["reason"]) == (("contribute", "east", "expired"), "task.no_answer")
    assert job["state"] == "fitting"


def test_failing_and_lapsed_contributions_are_tried_again_and_then_left_out(world, asked):
    match(world)
    world.sites["east"].tell(world.sites["east"].lease(), "fail", code="site.fault", retryable=False)
    for attempt in range(1, world.settings.max_attempts + 1):
        task = world.sites["south"].lease()
        assert task["attempt"] == attempt
        world.sites["south"].tell(task, "fail", code="site.fault", retryable=True)
    job = world.job(asked)
    assert [state for _, _, state in tasks(job)[1:3]] == ["failed", "failed"]
    assert job["state"] == "fitting"


def test_a_cancelled_job_asks_for_nothing_more(world, asked):
    match(world)
    task = world.sites["south"].lease()
    assert world.north.post(f"/v1/jobs/{asked['id']}/cancel").status_code == 200
    assert world.sites["south"].tell(task, "heartbeat").json()["cancel"] is True
    assert refusal(world.sites["south"].put(task, "moments.safetensors", moments(task)), 409)["code"] == "task.fenced"
    assert world.sites["east"].lease() is None


def test_a_failed_job_keeps_what_was_contributed(world, asked):
    match(world)
    contribute(world, "south")
    for party in ("east", "north"):
        world.sites[party].tell(world.sites[party].lease(), "fail", code="site.fault", retryable=False)
    assert world.job(asked)["state"] == "failed"
    assert world.north.post(f"/v1/jobs/{asked['id']}/retry").status_code == 200
    assert world.job(asked)["state"] == "fitting"
    task = world.sites["north"].lease()
    assert (task["kind"], set(task["spec"]["contributions"])) == ("fit", {"south"})
    assert world.sites["east"].lease() is None


def test_a_match_that_failed_is_tried_again(world, asked):
    world.sites["north"].tell(world.sites["north"].lease(), "fail", code="site.fault", retryable=False)
    assert world.job(asked)["state"] == "failed"
    assert world.north.post(f"/v1/jobs/{asked['id']}/retry").status_code == 200
    assert world.job(asked)["state"] == "matching"
    match(world)
    assert world.job(asked)["state"] == "contributing"


def test_where_nothing_can_be_joined_nobody_is_asked(world, asked):
    match(world, placements=[], norms=[])
    assert tasks(world.job(asked)) == [("match", "north", "done"), ("fit", "north", "open")]


def test_a_file_that_says_something_else_is_refused(world, asked):
    match(world)
    site = world.sites["south"]
    task = site.lease()
    wrong = [
        ({"members": ["0" * 64] * 2}, "moments.mismatch"),
        ({"placements": [{"0": "n1", "1": "n3"}]}, "moments.mismatch"),
        ({"n": {"train": 11, "validation": 11}}, "moments.mismatch"),
        ({"privacy": {"epsilon": 1, "delta": 1e-5, "clips": [1.0]}}, "moments.mismatch"),
        ({"note": "text"}, "moments.invalid"),
    ]
    for changes, code in wrong:
        assert site.put(task, "moments.safetensors", moments(task, **changes)).status_code == 200
        assert refusal(site.tell(task, "result", document={"n": SAMPLES}), 422)["code"] == code
    assert refusal(site.put(task, "candidates.json", b"{}"), 422)["code"] == "task.file"


def test_who_cannot_contribute_is_said_at_once(world):
    world.ask()
    refused = {
        "job.own_contribution": ["north"],
        "job.duplicate_party": ["south", "south/a"],
        "party.unknown": ["west"],
    }
    for code, contribute_from in refused.items():
        answer = world.ask(contribute_from=contribute_from)
        assert refusal(answer, 422)["code"] == code
        assert refusal(answer, 422)["where"].startswith("contribute_from.")
