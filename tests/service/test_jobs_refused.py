"""What is refused before anyone works on a job, and datasets and metrics that sites and jobs name."""

from __future__ import annotations

import json

import pytest
from tests.service.jobs import refusal

from suture_service.tables import Job


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
