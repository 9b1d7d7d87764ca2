"""From the question to the published ensemble; what is refused before anyone works; who may see what."""

from __future__ import annotations

import json

import pytest

from suture_service.tables import Job


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


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


def history(world, job, task=None):
    """The changes of a job, or of one of its tasks: from, to, by whom and why."""
    events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
    wanted = [event for event in events if event["kind"] in ("job", "task") and event["task"] == task]
    return [tuple(event["data"].get(key) for key in ("from", "state", "by", "reason")) for event in wanted]


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


def retry(world, job, actor=None):
    return (actor or world.north).post(f"/v1/jobs/{job['id']}/retry")


class TestRetry:
    def fail(self, world, party, code="work.failed"):
        task = world.sites[party].lease()
        assert world.sites[party].tell(task, "fail", code=code, correlation_id="0123456789abcdef").status_code == 200
        return task

    def test_a_failed_fit(self, world):
        job = world.ask().json()
        failed = self.fail(world, "north")
        answer = retry(world, job)
        assert answer.status_code == 200, answer.text
        again = answer.json()
        assert (again["state"], again["error"], again["finished_at"]) == ("fitting", None, None)
        assert [(task["state"], task["attempt"]) for task in again["tasks"]] == [("open", 1)]
        assert retry(world, job).json()["state"] == "fitting"  # repeated
        late = world.sites["north"].tell(failed, "fail", code="work.failed", correlation_id="0123456789abcdef")
        assert refusal(late, 409)["code"] == "task.fenced"
        assert world.fit()["fence"] == failed["fence"] + 1
        world.evaluate("north")
        world.evaluate("south")
        world.compose()
        assert world.job(job)["state"] == "complete"
        assert ("failed", "fitting", "north", None) in history(world, job)
        assert ("failed", "open", "north", "job.retried") in history(world, job, failed["id"])

    def test_only_what_failed_or_was_cut_short_is_done_again(self, world):
        job = world.ask(evaluate_at=["south", "east"], evaluate_within=100).json()
        world.fit()
        world.evaluate("east")
        held = world.sites["south"].lease()
        self.fail(world, "north")
        assert [task["state"] for task in world.job(job)["tasks"]] == ["done", "failed", "leased", "done"]
        world.later(50)
        retry(world, job)
        assert [task["state"] for task in world.job(job)["tasks"]] == ["done", "open", "open", "done"]
        assert refusal(world.sites["south"].tell(held, "heartbeat"), 409)["code"] == "task.fenced"
        assert world.sites["east"].lease() is None
        world.later(60)  # the time to answer starts anew
        assert world.job(job)["missing"] == []
        world.evaluate("north")
        world.evaluate("south")
        self.fail(world, "north")  # now the composition
        assert world.job(job)["state"] == "failed"
        retry(world, job)
        states = [(task["kind"], task["state"]) for task in world.job(job)["tasks"]]
        assert states == [*[("fit", "done")], *[("evaluate", "done")] * 3, ("compose", "open")]
        world.compose()
        assert world.job(job)["state"] == "complete"

    def test_what_the_own_site_declined_may_be_asked_again_and_what_another_declined_stays(self, world):
        job = world.ask(evaluate_at=["south"]).json()
        world.fit()
        for party in ("south", "north"):
            task = world.sites[party].lease()
            world.sites[party].tell(task, "decline", code="policy.denied")
        assert world.job(job)["state"] == "failed"
        retry(world, job)
        assert [task["state"] for task in world.job(job)["tasks"]] == ["done", "open", "declined"]
        world.evaluate("north")
        world.compose()
        assert world.job(job)["state"] == "partial"

    def test_not_long_after_its_end(self, world):
        job = world.ask().json()
        self.fail(world, "north")
        world.later(91 * 86400)
        assert refusal(retry(world, job), 409)["code"] == "job.too_old"

    def test_who_may_and_when(self, world):
        job = world.ask().json()
        for actor in (world.actor("north", "publisher"), world.sites["north"]):
            assert refusal(retry(world, job, actor), 403)["code"] == "auth.forbidden"
        assert refusal(retry(world, job, world.south), 404)["code"] == "not_found"
        world.north.post(f"/v1/jobs/{job['id']}/cancel")
        error = refusal(retry(world, job), 409)
        assert error["code"] == "job.not_failed"
        assert "cancelled" in error["message"]


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


def test_those_missing_from_a_partial_job_are_asked_again(world):
    job = world.ask(evaluate_at=["south", "east"]).json()
    world.fit()
    task = world.sites["south"].lease()
    world.sites["south"].tell(task, "fail", code="work.failed", correlation_id="0123456789abcdef", retryable=False)
    declined = world.sites["east"].lease()
    world.sites["east"].tell(declined, "decline", code="policy.denied")
    world.evaluate("north")
    world.compose()
    assert world.job(job)["state"] == "partial"
    assert retry(world, job).status_code == 200
    states = {task["party"]: task["state"] for task in world.job(job)["tasks"] if task["kind"] == "evaluate"}
    assert states == {"north": "done", "south": "late", "east": "declined"}
    world.later(1)
    world.evaluate("south")
    world.compose()
    done = world.job(job)
    assert [one["party"] for one in done["missing"]] == ["east"]
    assert [one["version"] for one in done["results"]] == [1, 2]


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


class TestRefusedBeforeAnyoneWorks:
    @pytest.fixture(autouse=True)
    def nothing_was_made(self, world):
        yield
        assert world.north.get("/v1/jobs").json()["items"] == []
        for site in world.sites.values():
            assert site.lease() is None

    def test_models_that_do_not_fit_together(self, world):
        world.south.publish("south/sequences", model=world.model(channels=4), metadata=world.metadata(channels=4))
        error = refusal(world.ask(models=("north/digits", "south/sequences")), 409)
        assert error["code"] == "job.incompatible"
        assert "south/sequences reads 4 channel(s), north/digits reads 1" in error["message"]
        stay = world.metadata(task="regression", labels=None)
        world.south.publish("south/stay", metadata=stay)
        error = refusal(world.ask(models=("north/digits", "south/stay")), 409)
        assert "north/digits does classification, south/stay does regression" in error["message"]

    def test_a_private_model_looks_unknown(self, world):
        world.south.publish("south/hidden", visibility="private")
        hidden = refusal(world.ask(models=("north/digits", "south/hidden")), 404)
        unknown = refusal(world.ask(models=("north/digits", "south/nothing")), 404)
        assert hidden == unknown
        assert hidden["where"] == "models.1"

    def test_a_revision_that_there_is_not(self, world):
        world.north.publish("north/digits")
        models = [{"repo": "north/digits", "revision": "0" * 40}, {"repo": "north/digits"}]
        body = {"models": models, "dataset": "digits"}
        assert refusal(world.north.post("/v1/jobs", body), 404)["where"] == "models.0"

    def test_a_model_that_an_evaluating_party_may_not_read(self, world):
        world.north.publish("north/private", visibility="private")
        error = refusal(world.ask(models=("north/private", "south/digits")), 409)
        assert error["code"] == "job.not_shared"
        assert "south" in error["message"]
        assert "north/private" in error["message"]

    def test_parties(self, world):
        world.operator.post("/v1/parties", {"name": "west"})
        assert refusal(world.ask(evaluate_at=["nowhere"]), 422)["code"] == "party.unknown"
        assert refusal(world.ask(evaluate_at=["south", "west"]), 409)["code"] == "job.no_site"
        assert refusal(world.ask(evaluate_at=["south/a", "south/b"]), 422)["code"] == "job.duplicate_party"

    @pytest.fixture
    def body(self):
        return {"models": [{"repo": "north/digits"}, {"repo": "south/digits"}], "dataset": "digits"}

    def test_fields(self, world, body):
        for change, where in (
            ({"models": [{"repo": "north/digits"}]}, "models"),
            ({"models": [{"repo": "digits"}, {"repo": "a/b"}]}, "models.0.repo"),
            ({"models": [{"repo": "a/b", "revision": "main"}, {"repo": "a/b"}]}, "models.0.revision"),
            ({"dataset": "../etc"}, "dataset"),
            ({"dataset": None}, "dataset"),
            ({"evaluate_at": ["south/a/b"]}, "evaluate_at.0"),
            ({"evaluate_at": ["-"]}, "evaluate_at.0"),
            ({"publish_as": "a/b"}, "publish_as"),
            ({"evaluate_within": 0}, "evaluate_within"),
            ({"evaluate_within": 10**9}, "evaluate_within"),
            ({"optoins": {}}, "optoins"),
        ):
            error = refusal(world.north.post("/v1/jobs", {**body, **change}), 422)
            assert (error["code"], error["where"]) == ("request.invalid", where)

    @pytest.mark.parametrize(
        ("options", "where", "message"),
        [
            ({"refine_step": 3}, "options", "there is no option 'refine_step'"),
            ({"x": "y" * 20_000}, "options", "there is no option 'x'"),
            ({"seed": "3"}, "options.seed", "'3': input should be a valid integer"),
            ({"alphas": [2]}, "options.alphas.0", "2: input should be less than or equal to 1"),
            ({"refine": 1}, "options.refine", "1: input should be a valid boolean"),
        ],
    )
    def test_options_of_the_fit(self, world, body, options, where, message):
        error = refusal(world.north.post("/v1/jobs", {**body, "options": options}), 422)
        assert (error["code"], error["where"], error["message"]) == ("job.options", where, message)
        assert "docs/fit-options.md" in error["hint"]

    def test_options_that_are_no_object(self, world, body):
        error = refusal(world.north.post("/v1/jobs", {**body, "options": ["seed"]}), 422)
        assert (error["code"], error["where"]) == ("request.invalid", "options")

    def test_the_same_model_twice(self, world, body):
        world.north.publish("north/digits")
        body["models"] = [{"repo": "north/digits"}] * 2
        assert refusal(world.north.post("/v1/jobs", body), 422)["code"] == "job.duplicate_model"

    def test_without_the_role(self, world, body):
        for actor in (world.actor("north", "publisher"), world.sites["north"]):
            assert refusal(actor.post("/v1/jobs", body), 403)["code"] == "auth.forbidden"

    def test_a_requester_without_a_site(self, world, body):
        for party in ("north", "south"):
            getattr(world, party).publish(f"{party}/digits", model=world.model(seed=len(party)))
        actor = world.actor("operators", "requester")
        assert refusal(actor.post("/v1/jobs", body), 409)["where"] == "operators"

    def test_a_body_that_is_no_json(self, world):
        headers = {"Content-Type": "application/json"}
        for content in (b"{", b"\xff", b"[" * 100_000, b'{"dataset": NaN}'):
            answer = world.north("POST", "/v1/jobs", content=content, headers=headers)
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["code"] == "request.invalid"


def test_infinite_numbers_in_options_are_refused(world):
    for party in ("north", "south"):
        getattr(world, party).publish(f"{party}/digits", model=world.model(seed=len(party)))
    body = {"models": [{"repo": "north/digits"}, {"repo": "south/digits"}], "dataset": "d", "options": {"x": 0}}
    text = json.dumps(body).replace('{"x": 0}', '{"x": Infinity}').encode()
    answer = world.north("POST", "/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert refusal(answer, 422)["where"] == "options"


def test_a_job_of_an_earlier_version_with_options_that_are_refused_now_still_shows(world):
    job = world.ask().json()
    with world.hub.database.writing() as session:
        session.get(Job, job["id"]).options = {"refine_step": 3, "seed": "1"}
    assert world.job(job)["state"] == "queued"
    assert [one["id"] for one in world.north.get("/v1/jobs").json()["items"]] == [job["id"]]
    assert world.sites["north"].lease()["spec"]["options"] == {"refine_step": 3, "seed": "1"}


def tell(world, party, datasets):
    answer = world.sites[party]("PUT", "/v1/site/datasets", json={"datasets": datasets})
    assert answer.status_code == 204, answer.text


def test_a_dataset_that_no_site_of_the_requester_has_is_refused_at_once(world):
    tell(world, "north", ["digits", "scans"])
    tell(world, "south", ["letters"])
    error = refusal(world.ask(dataset="digts"), 422)
    assert (error["code"], error["where"]) == ("dataset.unknown", "dataset")
    assert "'digits'" in error["hint"]
    assert "letters" not in str(error)
    # What another party's site has is no matter of the requester's.
    assert "letters" not in str(refusal(world.ask(dataset="letters"), 422)["hint"])
    assert world.ask(dataset="digits", evaluate_at=["south/unheard"]).status_code == 201


def test_where_a_site_does_not_tell_its_datasets_it_decides_itself(world):
    assert world.ask(dataset="anything").status_code == 201
    tell(world, "north", ["digits"])
    assert world.ask(dataset="anything").status_code == 422
    tell(world, "north", None)
    assert world.ask(dataset="anything").status_code == 201


def test_only_a_site_tells_datasets_and_nobody_else_sees_them(world):
    assert world.north("PUT", "/v1/site/datasets", json={"datasets": ["x"]}).status_code == 403
    tell(world, "north", ["secret_study"])
    for actor in (world.south, world.sites["south"], world.operator):
        assert "secret_study" not in actor.get("/v1/parties").text


def test_sites_are_told_which_metrics_a_job_asks_for_and_tell_no_others(world):
    answer = world.ask(options={"metrics": ["auroc", "brier"]})
    assert answer.status_code == 201, answer.text
    world.fit()
    task = world.sites["north"].lease()
    assert task["spec"]["metrics"] == ["auroc", "brier"]
    document = world.evaluation_of(task)
    value = {"value": 0.9, "low": 0.8, "high": 0.95}

    def with_metric(name, ids=("c00", "c01", "c02", "c03")):
        test = {**document["splits"]["test"], "metrics": {name: dict.fromkeys(ids, value)}}
        return {**document, "splits": {**document["splits"], "test": test}}

    site = world.sites["north"]
    assert refusal(site.tell(task, "result", document=with_metric("f1")), 422)["code"] == "evaluation.mismatch"
    assert refusal(site.tell(task, "result", document=with_metric("auroc", ["c09"])), 422)["code"]
    assert site.tell(task, "result", document=with_metric("auroc")).status_code == 200


def test_a_metric_of_another_task_is_refused_when_the_job_is_posted(world):
    error = refusal(world.ask(options={"metrics": ["hd95"]}), 422)
    assert (error["code"], error["where"]) == ("job.options", "options.metrics")
    assert "auroc" in error["hint"]
