"""Leases: fences, attempts, presence; and what a result must be."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.service.jobs import refusal

from suture_service import hub
from suture_service.models import publishing


def put_fit(world, task, *, candidates=None, stitches=None):
    site = world.sites["north"]
    document = candidates if candidates is not None else world.candidates_of(task)
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    assert site.put(task, "candidates.json", content).status_code == 200
    content = world.STITCHES if stitches is None else stitches
    assert site.put(task, "stitches.safetensors", content).status_code == 200


def test_a_lease_is_given_once(world, leased):
    _, task = leased
    assert (task["attempt"], task["fence"], task["lease_seconds"]) == (1, 1, 60)
    assert world.sites["north"].lease() is None
    assert world.job(leased[0])["state"] == "fitting"


def test_tasks_are_leased_oldest_first_by_any_site_of_the_party(world):
    jobs = [world.ask().json()["id"] for _ in range(2)]
    second = world.operator.post("/v1/parties/north/sites", {"name": "second"}).json()["token"]
    other = type(world.north)(world.client, second)
    assert world.sites["north"].lease()["job"]["id"] == jobs[0]
    assert other.lease()["job"]["id"] == jobs[1]


def test_a_busy_party_is_heard_while_large_models_of_others_are_checked(world, leased, monkeypatch):
    """Its lease would lapse: of a slow store, a check may take minutes."""
    check, running, go_on = publishing.check_model, threading.Semaphore(0), threading.Event()

    def slowly(files):
        running.release()
        go_on.wait(60)
        return check(files)

    monkeypatch.setattr(publishing, "check_model", slowly)
    monkeypatch.setattr(hub, "MUCH", -1.0)  # all have used much of late
    with ThreadPoolExecutor(3) as pool:
        owners = {"south/large": world.south, "east/large": world.east}
        others = [pool.submit(owner.publish, name) for name, owner in owners.items()]
        try:
            for _ in others:
                assert running.acquire(timeout=60)
            heard = pool.submit(world.sites["north"].tell, leased[1], "heartbeat")
            assert heard.result(30).status_code == 200
        finally:
            go_on.set()
        assert {other.result(60).status_code for other in others} == {201}


@pytest.mark.parametrize("sign", ["heartbeat", "progress"])
def test_a_site_at_work_is_online(world, leased, sign):
    def online():
        listed = world.south.get("/v1/parties").json()["items"]
        return next(party for party in listed if party["name"] == "north")["sites"][0]["online"]

    for _ in range(3):
        world.later(50)
        content = {"step": "x", "done": 0, "total": 1} if sign == "progress" else {}
        assert world.sites["north"].tell(leased[1], sign, **content).status_code == 200
        assert online()
    world.later(91)
    assert not online()


def test_a_lapsed_lease_opens_the_task_again(world, leased):
    job, first = leased
    north = world.sites["north"]
    world.later(40)
    assert north.tell(first, "heartbeat").json()["cancel"] is False
    world.later(40)
    assert north.lease() is None  # the heartbeat has renewed it
    world.later(21)
    second = north.lease()
    assert (second["id"], second["attempt"], second["fence"]) == (first["id"], 2, 2)
    for answer in (
        north.tell(first, "heartbeat"),
        north.tell(first, "progress", step="x", done=0, total=1),
        north.put(first, "candidates.json", b"{}"),
        north.tell(first, "result", document={"n": 1}),
        north.tell(first, "fail", code="child.killed"),
        north.tell(first, "decline", code="policy.denied"),
    ):
        assert refusal(answer, 409)["code"] == "task.fenced"
    assert north.tell(second, "heartbeat").status_code == 200
    put_fit(world, second)
    assert north.tell(second, "result", document={"n": 1}).status_code == 200
    assert world.job(job)["state"] == "evaluating"


def test_files_of_an_earlier_lease_do_not_count(world, leased):
    _, first = leased
    put_fit(world, first)
    world.later(61)
    second = world.sites["north"].lease()
    error = refusal(world.sites["north"].tell(second, "result", document={"n": 1}), 422)
    assert error["code"] == "task.file_missing"
    put_fit(world, second)
    assert world.sites["north"].tell(second, "result", document={"n": 1}).status_code == 200


def test_after_the_last_attempt_the_task_has_failed(world, leased):
    job, _ = leased
    for attempt in (2, 3):
        world.later(61)
        assert world.sites["north"].lease()["attempt"] == attempt
    world.later(61)
    assert world.sites["north"].lease() is None
    done = world.job(job)
    assert (done["state"], done["error"]["code"]) == ("failed", "task.attempts_exhausted")


def test_a_retryable_failure_is_tried_again_until_attempts_run_out(world, leased):
    job, task = leased
    north = world.sites["north"]
    for attempt in (1, 2, 3):
        assert task["attempt"] == attempt
        answer = north.tell(task, "fail", code="memory.full", retryable=True)
        assert answer.json()["state"] == ("open" if attempt < 3 else "failed")
        task = north.lease()
    assert task is None
    assert world.job(job)["error"]["code"] == "memory.full"


def test_another_party_sees_no_task(world, leased):
    _, task = leased
    south = world.sites["south"]
    unknown = refusal(south.post("/v1/tasks/task_0/heartbeat", {"fence": 1}), 404)
    for answer in (
        south.tell(task, "heartbeat"),
        south.tell(task, "progress", step="x", done=0, total=1),
        south.put(task, "candidates.json", b"{}"),
        south.tell(task, "result", document={"n": 1}),
        south.tell(task, "fail", code="x"),
        south.tell(task, "decline", code="x"),
    ):
        assert refusal(answer, 404) == unknown
    for answer in (world.north.tell(task, "heartbeat"), world.north.post("/v1/tasks/lease")):
        assert refusal(answer, 403)["code"] == "auth.forbidden"


def test_progress_is_shown_and_only_the_latest_kept(world, leased):
    job, task = leased
    for done in (1, 2, 3):
        answer = world.sites["north"].tell(task, "progress", step="moments", done=done, total=9, seconds_left=2.5)
        assert answer.json()["cancel"] is False
    shown = world.job(job)["tasks"][0]["progress"]
    assert shown == {"step": "moments", "done": 3, "total": 9, "seconds_left": 2.5}
    events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
    assert [event["data"]["done"] for event in events if event["kind"] == "progress"] == [3]
    for change in ({"step": "<b>"}, {"done": -1}, {"total": 10**16}, {"note": "x"}):
        body = {"step": "x", "done": 0, "total": 1, **change}
        assert refusal(world.sites["north"].tell(task, "progress", **body), 422)["code"] == "request.invalid"


def test_the_same_result_twice_is_harmless(world, leased):
    job, task = leased
    put_fit(world, task)
    north = world.sites["north"]
    for _ in range(3):
        assert north.tell(task, "result", document={"n": 5}).json() == {"id": task["id"], "state": "done"}
    assert refusal(north.tell(task, "result", document={"n": 6}), 409)["code"] == "task.fenced"
    assert refusal(north.tell({**task, "fence": 2}, "result", document={"n": 5}), 409)["code"] == "task.fenced"
    assert [task["kind"] for task in world.job(job)["tasks"]] == ["fit", "evaluate", "evaluate"]
    evaluation = world.sites["north"].lease()
    document = world.evaluation_of(evaluation)
    for _ in range(2):
        assert north.tell(evaluation, "result", document=document).status_code == 200
    other = world.evaluation_of(evaluation, metric="auroc")
    assert refusal(north.tell(evaluation, "result", document=other), 409)["code"] == "task.fenced"


def test_a_composed_result_twice_publishes_once(world, leased):
    job, task = leased
    put_fit(world, task)
    north = world.sites["north"]
    north.tell(task, "result", document={"n": 5})
    world.evaluate("north")
    world.evaluate("south")
    compose = world.compose()
    assert north.tell(compose, "result", document={"chosen": "c03"}).status_code == 200
    repo = world.job(job)["result"]["repo"]
    assert len(world.north.get(f"/v1/models/{repo}/revisions").json()["items"]) == 1


class TestFit:
    def refused(self, world, task, code, document=None, **files):
        put_fit(world, task, **files)
        error = refusal(world.sites["north"].tell(task, "result", document=document or {"n": 5}), 422)
        assert error["code"] == code
        assert world.sites["north"].tell(task, "heartbeat").status_code == 200  # the lease goes on
        return error

    def test_files_by_kind(self, world, leased):
        _, task = leased
        north = world.sites["north"]
        for name in ("report.json", "model.safetensors", "x"):
            assert refusal(north.put(task, name, b"x"), 422)["code"] == "task.file"
        assert north.put(task, "..", b"x").status_code == 404
        error = refusal(north.tell(task, "result", document={"n": 5}), 422)
        assert (error["code"], error["where"]) == ("task.file_missing", "candidates.json")

    def test_the_answer_names_what_was_received(self, world, leased):
        _, task = leased
        for content in (b"one", b"another"):
            answer = world.sites["north"].put(task, "candidates.json", content).json()
            digest = hashlib.sha256(content).hexdigest()
            assert answer == {"name": "candidates.json", "size": len(content), "sha256": digest}

    def test_documents(self, world, leased):
        put_fit(world, leased[1])
        for document in ({"n": -1}, {}, {"n": 1, "x": 2}, {"n": "many"}):
            answer = world.sites["north"].tell(leased[1], "result", document=document)
            assert refusal(answer, 422)["code"] == "result.invalid"

    def test_candidates(self, world, leased):
        _, task = leased
        good = world.candidates_of(task)
        self.refused(world, task, "candidates.invalid", candidates=b"{")
        self.refused(world, task, "candidates.invalid", candidates={**good, "note": "patient 7"})
        self.refused(world, task, "candidates.mismatch", candidates={**good, "members": good["members"][::-1]})
        self.refused(world, task, "candidates.mismatch", candidates={**good, "task": "regression"})
        strange = [*good["candidates"], {"id": "c04", "kind": "single", "members": [2]}]
        self.refused(world, task, "candidates.invalid", candidates={**good, "candidates": strange})
        twice = [*good["candidates"], good["candidates"][0]]
        self.refused(world, task, "candidates.invalid", candidates={**good, "candidates": twice})

    def test_stitches(self, world, leased):
        _, task = leased
        stitches = world.STITCHES
        self.refused(world, task, "stitches.truncated", stitches=stitches[:-1])
        self.refused(world, task, "stitches.invalid", stitches=stitches[:20])
        self.refused(world, task, "stitches.invalid", stitches=b"")
        self.refused(world, task, "stitches.invalid", stitches=world.safetensors({}, b""))
        self.refused(world, task, "stitches.invalid", stitches=stitches.replace(b"s0.b", b"s0.c"))

    def test_size(self, start):
        world = start(max_document_bytes=2000)
        world.ask()
        task = world.sites["north"].lease()
        blobs = world.blobs()
        assert (
            refusal(world.sites["north"].put(task, "candidates.json", bytes(2001)), 413)["code"] == "upload.too_large"
        )
        assert world.blobs() == blobs


class TestEvaluate:
    @pytest.fixture
    def task(self, world):
        world.ask()
        world.fit()
        return world.sites["south"].lease()

    def test_nothing_but_the_document_leaves(self, world, task):
        for name in ("candidates.json", "predictions.csv"):
            assert refusal(world.sites["south"].put(task, name, b"x"), 422)["code"] == "task.file"

    def test_documents(self, world, task):
        good = world.evaluation_of(task)
        score = {"value": 0.9, "low": 0.8, "high": 0.95}

        def scores(**changes):
            names = {"c00": score, "c01": score, "c02": score, "c03": score, **changes}
            kept = {name: value for name, value in names.items() if value is not None}
            return {**good, "splits": {"test": {"n": 1, "scores": kept}}}

        for document, code in (
            ({}, "result.invalid"),
            ({**good, "note": "patient 7"}, "result.invalid"),
            (scores(c03={**score, "patient": 7}), "result.invalid"),
            (scores(c03={**score, "value": "nan"}), "result.invalid"),
            ({**good, "splits": {"train": {"n": 1, "scores": {}}}}, "result.invalid"),
            (scores(c04=score), "evaluation.mismatch"),
            (scores(c03=None), "evaluation.mismatch"),
            ({**good, "splits": {}}, "evaluation.invalid"),
            ({**good, "own": 0}, "evaluation.mismatch"),
            ({**good, "own": None}, "evaluation.mismatch"),
        ):
            assert refusal(world.sites["south"].tell(task, "result", document=document), 422)["code"] == code
        assert world.sites["south"].tell(task, "result", document=scores()).status_code == 200

    def test_numbers_that_are_none(self, world, task):
        text = json.dumps({"fence": task["fence"], "document": world.evaluation_of(task)}).replace("0.95", "NaN")
        headers = {"Content-Type": "application/json"}
        answer = world.sites["south"]("POST", f"/v1/tasks/{task['id']}/result", content=text, headers=headers)
        assert answer.status_code == 422
        assert world.sites["south"].tell(task, "heartbeat").status_code == 200


class TestCompose:
    @pytest.fixture
    def task(self, world):
        world.ask(publish_as="both")
        world.fit()
        world.evaluate("north")
        world.evaluate("south")
        return world.sites["north"].lease()

    def refused(self, world, task, code, *, chosen="c03", **changes):
        world.put_composed(task, **changes)
        error = refusal(world.sites["north"].tell(task, "result", document={"chosen": chosen}), 422)
        assert error["code"] == code
        assert world.north.get("/v1/models/north/both").status_code == 404
        assert world.job(task["job"])["state"] == "composing"
        return error

    def test_a_card_is_published_with_it(self, world, task):
        self.refused(world, task, "card.yaml", card=b"---\na: [\n---\n")
        self.refused(world, task, "card.encoding", card=b"\xff")
        card = b"---\ntags: [joined]\n---\n# Both\n"
        world.put_composed(task, card=card)
        answer = world.sites["north"].tell(task, "result", document={"chosen": "c03"})
        assert answer.status_code == 200, answer.text
        assert world.north.get("/v1/models/north/both/revisions/latest/files/README.md").content == card

    def test_lineage_must_be_that_of_the_job(self, world, task):
        members = [{key: member[key] for key in ("repo", "revision", "sha256")} for member in task["spec"]["members"]]
        forged = [{**members[0], "sha256": "0" * 64}, members[1]]
        for lineage in (
            {"job": "job_0000000000000000"},
            {"requester": "south"},
            {"candidate": "c01"},
            {"members": members[:1]},
            {"members": members[::-1]},
            {"members": forged},
        ):
            error = self.refused(world, task, "lineage.mismatch", lineage=lineage)
            assert next(iter(lineage)) in error["where"]
        world.put_composed(task)
        content = json.dumps(world.metadata()).encode()
        assert world.sites["north"].put(task, "suture.json", content).status_code == 200
        answer = world.sites["north"].tell(task, "result", document={"chosen": "c03"})
        assert refusal(answer, 422)["code"] == "lineage.mismatch"

    def test_report_must_be_that_of_the_job(self, world, task):
        for report in (
            {"requester": "south"},
            {"chosen": "c01"},
            {"parties": {}},
            {"missing": [{"party": "south", "reason": "declined"}]},
            {"lineage": {"job": "other", "members": []}},
        ):
            self.refused(world, task, "report.mismatch", report=report)
        self.refused(world, task, "report.invalid", report={"note": "x"})
        self.refused(world, task, "report.mismatch", chosen="c77")

    def test_the_model_is_checked_like_any_other(self, world, task):
        self.refused(world, task, "model.truncated", model=world.model()[:-1])
        self.refused(world, task, "metadata.mismatch", model=world.model(classes=3))
        self.refused(world, task, "metadata.invalid", license="")

    def test_everything_put_right(self, world, task):
        self.refused(world, task, "model.truncated", model=world.model()[:-1])
        world.put_composed(task)
        assert world.sites["north"].tell(task, "result", document={"chosen": "c03"}).status_code == 200
        assert world.job(task["job"])["state"] == "complete"

    def test_a_new_revision_of_a_model_that_is_there(self, world, task):
        first = world.north.publish("north/both", visibility="all").json()["id"]
        world.put_composed(task)
        assert world.sites["north"].tell(task, "result", document={"chosen": "c03"}).status_code == 200
        revisions = world.south.get("/v1/models/north/both/revisions").json()["items"]
        assert [revision["id"] for revision in revisions][1:] == [first]
        assert revisions[0]["job"] == task["job"]["id"]
