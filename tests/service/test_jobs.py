"""From the question to the published ensemble: its states, who ends it, who may see what."""

from __future__ import annotations

import pytest
from tests.service.jobs import history, refusal


def test_the_whole_way(world):
    asked = world.ask(publish_as="both", options={"seed": 3}, evaluate_at=["south/scans"])
    assert asked.status_code == 201, asked.text
    job = asked.json()
    assert job["state"] == "queued"
    assert (job["requester"], job["dataset"], job["evaluate_at"]) == ("north", "digits", ["south/scans"])
    assert [(task["kind"], task["party"], task["state"]) for task in job["tasks"]] == [("fit", "north", "open")]
    assert world.sites["south"].lease() is None

    fit = world.fit()
    assert fit["job"] == {"id": job["id"], "requester": "north"}
    assert (fit["spec"]["dataset"], fit["spec"]["options"]) == ("digits", {"seed": 3})
    for member, model in zip(fit["spec"]["members"], job["models"], strict=True):
        assert member.items() >= model.items()
        assert member["size"] == len(world.model())
        assert member["party"] == member["repo"].split("/")[0]
        assert member["metadata"]["labels"] == ["0", "1"]

    assert world.job(job)["state"] == "evaluating"
    own = world.evaluate("north")
    assert (own["spec"]["own"], own["spec"]["dataset"]) == (0, "digits")
    other = world.sites["south"].lease()
    assert (other["spec"]["own"], other["spec"]["dataset"]) == (1, "scans")
    for name, file in other["spec"]["candidates"].items():
        content = world.sites["south"].get(f"/v1/jobs/{job['id']}/files/{name}")
        assert content.headers["etag"] == f'"{file["sha256"]}"'
        assert len(content.content) == file["size"]
    assert world.sites["south"].get(f"/v1/jobs/{job['id']}").json()["id"] == job["id"]
    assert world.sites["south"].tell(other, "result", document=world.evaluation_of(other)).status_code == 200

    assert world.job(job)["state"] == "composing"
    compose = world.compose()
    assert set(compose["spec"]["evaluations"]) == {"north", "south"}
    assert compose["spec"]["evaluations"]["south"]["schema"] == "suture.evaluation/1"
    assert (compose["spec"]["missing"], compose["spec"]["publish_as"]) == ([], "north/both")

    done = world.job(job)
    assert (done["state"], done["missing"], done["error"]) == ("complete", [], None)
    assert done["finished_at"] is not None
    revision = world.north.get(f"/v1/models/north/both/revisions/{done['result']['revision']}").json()
    assert revision["job"] == job["id"]
    assert revision["created_by"] == "north/north-site"
    assert revision["metadata"]["lineage"]["members"] == job["models"]
    assert [file["name"] for file in revision["files"]] == ["model.safetensors", "report.json", "suture.json"]
    report = world.north.get(f"/v1/jobs/{job['id']}/report")
    assert report.json()["chosen"] == "c03"
    assert report.content == world.north.get("/v1/models/north/both/revisions/latest/files/report.json").content
    assert world.north.get("/v1/models/north/both").json()["visibility"] == "private"
    assert world.south.get("/v1/models/north/both").status_code == 404
    for site in world.sites.values():
        assert site.lease() is None


def test_events_tell_every_step_in_order(world):
    job = world.ask().json()
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    world.compose()
    answer = world.north.get(f"/v1/jobs/{job['id']}/events").json()
    events = answer["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert answer["next"] == len(events)
    states = [event["data"]["state"] for event in events if event["kind"] == "job"]
    assert states == ["queued", "fitting", "evaluating", "composing", "complete"]
    steps = [
        (event["data"]["kind"], event["data"]["party"], event["data"]["state"]) for event in events if event["task"]
    ]
    for kind, party in (("fit", "north"), ("evaluate", "north"), ("evaluate", "south"), ("compose", "north")):
        assert [state for *who, state in steps if who == [kind, party]] == ["open", "leased", "done"]
    rest = world.north.get(f"/v1/jobs/{job['id']}/events", params={"after": 5}).json()["items"]
    assert rest == events[5:]
    last = world.north.get(f"/v1/jobs/{job['id']}/events", params={"after": answer["next"], "wait": 20}).json()
    assert last == {"items": [], "next": answer["next"]}  # at once: nothing more will happen


@pytest.mark.parametrize(
    ("code", "reason"), [("policy.denied", "declined"), ("policy.too_few_samples", "too_few_samples")]
)
def test_a_party_that_declines_is_missing(world, code, reason):
    job = world.ask().json()
    world.fit()
    task = world.sites["south"].lease()
    assert world.sites["south"].tell(task, "decline", code=code).json()["state"] == "declined"
    assert world.job(job)["state"] == "evaluating"
    world.evaluate("north")
    compose = world.compose()
    assert compose["spec"]["missing"] == [{"party": "south", "reason": reason}]
    done = world.job(job)
    assert (done["state"], done["missing"]) == ("partial", [{"party": "south", "reason": reason}])
    assert done["result"]["repo"].startswith("north/stitched-")


@pytest.mark.parametrize("working", [False, True])
def test_a_party_that_never_answers_is_missing(world, working):
    job = world.ask(evaluate_at=["south", "east"], evaluate_within=300).json()
    world.fit()
    world.evaluate("north")
    world.evaluate("east")
    task = world.sites["south"].lease() if working else None
    for _ in range(6):
        world.later(49)
        if working:
            assert world.sites["south"].tell(task, "heartbeat").status_code == 200
    assert world.job(job)["state"] == "evaluating"
    world.later(120)
    if working:
        assert refusal(world.sites["south"].tell(task, "heartbeat"), 409)["code"] == "task.fenced"
        late = world.sites["south"].tell(task, "result", document=world.evaluation_of(task))
        assert refusal(late, 409)["code"] == "task.fenced"
    assert world.sites["south"].lease() is None
    world.compose()
    done = world.job(job)
    assert (done["state"], done["missing"]) == ("partial", [{"party": "south", "reason": "no_answer"}])


def test_the_requesters_own_evaluation_has_no_deadline(world):
    job = world.ask(evaluate_within=60).json()
    world.fit()
    world.later(3600)
    assert world.job(job)["missing"] == [{"party": "south", "reason": "no_answer"}]
    assert world.job(job)["state"] == "evaluating"
    world.evaluate("north")
    assert world.job(job)["state"] == "composing"


def test_a_failing_party_is_missing_and_a_failing_requester_ends_the_job(world):
    job = world.ask(evaluate_at=["south", "east"]).json()
    world.fit()
    task = world.sites["south"].lease()
    answer = world.sites["south"].tell(task, "fail", code="child.killed", correlation_id="c-7", retryable=False)
    assert answer.json()["state"] == "failed"
    shown = world.job(job)
    assert (shown["state"], shown["missing"]) == ("evaluating", [{"party": "south", "reason": "failed"}])
    east = world.sites["east"].lease()
    own = world.sites["north"].lease()
    world.sites["north"].tell(own, "fail", code="dataset.missing", correlation_id="c-8", retryable=False)
    done = world.job(job)
    place = {"party": "north", "site": "north-site", "task": "evaluate"}
    assert done["state"] == "failed"
    assert done["error"] == {"code": "dataset.missing", "correlation_id": "c-8", **place}
    assert done["result"] is None
    assert world.sites["east"].tell(east, "heartbeat").json()["cancel"] is True
    late = world.sites["east"].tell(east, "result", document=world.evaluation_of(east))
    assert refusal(late, 409)["code"] == "task.fenced"
    assert refusal(world.north.get(f"/v1/jobs/{job['id']}/report"), 404)["code"] == "not_found"


def test_a_declined_fit_ends_the_job_with_its_code(world):
    job = world.ask().json()
    task = world.sites["north"].lease()
    world.sites["north"].tell(task, "decline", code="dataset.unknown")
    done = world.job(job)
    assert (done["state"], done["error"]["code"]) == ("failed", "dataset.unknown")
    assert done["tasks"][0]["reason"] == "dataset.unknown"


def test_cancel(world):
    job = world.ask(evaluate_at=["south", "east"]).json()
    world.fit()
    leased = world.sites["south"].lease()
    assert world.sites["south"].tell(leased, "heartbeat").json()["cancel"] is False
    cancelled = world.north.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert {task["party"]: task["state"] for task in cancelled["tasks"] if task["kind"] == "evaluate"} == {
        "north": "cancelled",
        "east": "cancelled",
        "south": "leased",
    }
    for site in world.sites.values():
        assert site.lease() is None
    south = world.sites["south"]
    assert south.tell(leased, "heartbeat").json()["cancel"] is True
    assert south.tell(leased, "progress", step="x", done=1, total=2).json()["cancel"] is True
    assert refusal(south.tell(leased, "result", document=world.evaluation_of(leased)), 409)["code"] == "task.fenced"
    assert south.tell(leased, "fail", code="work.cancelled").json()["state"] == "cancelled"
    assert south.tell(leased, "fail", code="work.cancelled").json()["state"] == "cancelled"
    again = world.north.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")
    assert world.job(job)["missing"] == []


def test_every_change_tells_from_to_who_and_why(world):
    job = world.ask().json()
    fit = job["tasks"][0]["id"]
    world.sites["north"].lease()
    world.later(world.settings.lease_seconds + 1)
    task = world.sites["north"].lease()
    world.sites["north"].tell(task, "fail", code="work.failed", correlation_id="0123456789abcdef")
    site = "north/north-site"
    assert history(world, job, fit) == [
        (None, "open", "north", None),
        ("open", "leased", site, None),
        ("leased", "open", "hub", "task.lease_expired"),
        ("open", "leased", site, None),
        ("leased", "failed", site, "work.failed"),
    ]
    assert history(world, job) == [
        (None, "queued", "north", None),
        ("queued", "fitting", site, None),
        ("fitting", "failed", site, None),
    ]
    events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
    tokens = {event["data"]["by"]: event["data"].get("token") for event in events}
    assert tokens["hub"] is None
    assert tokens["north"] != tokens[site]
    assert None not in (tokens["north"], tokens[site])


def test_a_site_that_vanishes_after_cancel_holds_nothing(world):
    job = world.ask().json()
    world.sites["north"].lease()
    world.north.post(f"/v1/jobs/{job['id']}/cancel")
    world.later(61)
    assert world.job(job)["tasks"][0]["state"] == "cancelled"
    assert world.sites["north"].lease() is None


def test_who_may_cancel_and_see(world):
    job = world.ask().json()
    path = f"/v1/jobs/{job['id']}"
    missing = refusal(world.north.get("/v1/jobs/job_0000000000000000"), 404)
    # A party that was asked sees the job once there is a task for it.
    for actor in (world.south, world.east, world.sites["east"], world.sites["south"]):
        assert refusal(actor.get(path), 404) == missing
        assert refusal(actor.get(f"{path}/events"), 404) == missing
        assert refusal(actor.get(f"{path}/files/candidates.json"), 404) == missing
        assert refusal(actor.get(f"{path}/report"), 404) == missing
        assert refusal(actor.post(f"{path}/cancel"), 404) == missing
        assert actor.get("/v1/jobs").json()["items"] == []
    world.fit()
    assert world.north.get(f"{path}/files/candidates.json").status_code == 200
    south = world.sites["south"]
    for actor in (south, world.south):
        assert actor.get(path).status_code == 200
        assert [one["id"] for one in actor.get("/v1/jobs").json()["items"]] == [job["id"]]
        assert refusal(actor.get(f"{path}/report"), 404)["code"] == "not_found"
    assert refusal(world.south.post(f"{path}/cancel"), 404) == missing
    assert refusal(south.get(f"{path}/files/candidates.json"), 404) == missing  # not before it holds a lease
    task = south.lease()
    assert south.get(f"{path}/files/stitches.safetensors").status_code == 200
    assert refusal(world.south.get(f"{path}/files/stitches.safetensors"), 404) == missing  # for its site alone
    assert refusal(south.get(f"{path}/files/report.json"), 404)["code"] == "not_found"
    assert refusal(south.post(f"{path}/cancel"), 404) == missing
    assert refusal(world.actor("north", "publisher").post(f"{path}/cancel"), 403)["code"] == "auth.forbidden"
    south.tell(task, "decline", code="policy.denied")
    assert refusal(south.get(f"{path}/files/stitches.safetensors"), 404) == missing
    world.evaluate("north")
    world.compose()
    assert refusal(south.get(f"{path}/report"), 404) == missing
    assert refusal(world.north.post(f"{path}/cancel"), 409)["code"] == "job.ended"


def test_who_evaluated_reads_the_report_and_the_model_once_it_is_shared(world):
    job = world.ask(evaluate_at=["south", "east"], evaluate_within=300, publish_as="both").json()
    assert (job["publish_as"], job["report_for"]) == ("north/both", ["east", "north", "south"])
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    world.later(301)
    world.compose()
    path = f"/v1/jobs/{job['id']}/report"
    assert world.south.get(path).json() == world.north.get(path).json()
    assert world.sites["south"].get(path).status_code == 200
    assert refusal(world.east.get(path), 404)["code"] == "not_found"  # it was asked, and did not answer
    error = refusal(world.south.get("/v1/models/north/both"), 404)
    assert "suture share" in error["hint"]
    assert world.north("PATCH", "/v1/models/north/both", json={"shared_with": ["south"]}).status_code == 200
    assert world.south.get("/v1/models/north/both").status_code == 200


def waits_of(world, job):
    return {(task["kind"], task["party"]): task["waits"] for task in world.job(job)["tasks"]}


def test_open_tasks_say_why_they_wait(world):
    job = world.ask(evaluate_at=["south"]).json()
    assert waits_of(world, job) == {("fit", "north"): {"why": "site_offline", "since": None}}
    world.fit()
    assert waits_of(world, job)[("evaluate", "north")] is None  # its site has just been there
    world.later(3600)
    away = waits_of(world, job)[("evaluate", "north")]
    assert away["why"] == "site_offline"
    assert away["since"] is not None
    second = world.ask(evaluate_at=["south"]).json()
    task = world.sites["north"].lease()
    assert task["job"]["id"] == job["id"]
    assert waits_of(world, second)[("fit", "north")]["why"] == "queued"
    assert world.sites["north"].tell(task, "wait", waits_for="approval").status_code == 200
    assert waits_of(world, job)[("evaluate", "north")] == {"why": "approval", "since": None}


def test_finished_tasks_show_no_progress(world):
    job = world.ask().json()
    task = world.sites["north"].lease()
    assert world.sites["north"].tell(task, "progress", step="solve", done=3, total=9).status_code == 200
    assert world.job(job)["tasks"][0]["progress"]["step"] == "solve"
    world.sites["north"].tell(task, "fail", code="work.failed", correlation_id="0123456789abcdef", retryable=False)
    assert world.job(job)["tasks"][0]["progress"] is None


def test_jobs_are_listed_newest_first(world):
    jobs = [world.ask().json()["id"] for _ in range(3)]
    world.north.post(f"/v1/jobs/{jobs[1]}/cancel")
    first = world.north.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["items"]] == [jobs[2], jobs[1]]
    rest = world.north.get("/v1/jobs", params={"cursor": first["next"]}).json()
    assert [job["id"] for job in rest["items"]] == [jobs[0]]
    cancelled = world.north.get("/v1/jobs", params={"state": "cancelled"}).json()["items"]
    assert [job["id"] for job in cancelled] == [jobs[1]]
    assert refusal(world.north.get("/v1/jobs", params={"cursor": "WyJ4IiwgInkiXQ"}), 422)["code"] == "request.cursor"
