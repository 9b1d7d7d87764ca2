"""Jobs that are tried again, and parties that are asked again."""

from __future__ import annotations

from tests.service.jobs import history, refusal, retry


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

    def test_a_job_that_is_tried_again_counts_as_a_new_one(self, start):
        world = start(max_party_jobs=1)
        job = world.ask().json()
        self.fail(world, "north")
        other = world.ask().json()
        assert refusal(retry(world, job), 409)["code"] == "quota.jobs"
        assert world.job(job)["state"] == "failed"
        world.north.post(f"/v1/jobs/{other['id']}/cancel").raise_for_status()
        assert retry(world, job).json()["state"] == "fitting"
        assert retry(world, job).status_code == 200, "repeated"

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
