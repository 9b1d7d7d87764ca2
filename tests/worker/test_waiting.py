"""Tasks that wait for a person, against a live hub: nothing else waits with them, nothing leaves before."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from safetensors.numpy import save_file
from tests.until import until

from suture_worker.agent.agent import Agent
from suture_worker.agent.hub import HubClient
from suture_worker.compute.celery_app import make_app
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.held import Held
from suture_worker.egress.log import verify
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Outcome, TaskFolder
from suture_worker.rules.inbox import Inbox
from suture_worker.stop import Stop

MODELS = ["north/net", "south/net"]


pytestmark = pytest.mark.usefixtures("looked_at_once", "heard_soon")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("suture_worker.agent.agent.LEASE_WAIT", 0.3)
    monkeypatch.setattr("suture_worker.agent.waiting.HEARTBEAT_SECONDS", 2.0)


class Site:
    """A site of a party that a person decides for, and its agent without a worker."""

    def __init__(self, config):
        self.config = config
        self.inbox = Inbox(config.state / "inbox")
        self.held = Held(config.state / "outbox" / "held")

    @contextmanager
    def running(self):
        stop = Stop()
        hub = HubClient(self.config.hub.url, self.config.hub.token_file.read_text().strip(), sleep=stop.wait)
        outbox = Outbox(self.config.state / "outbox", min_samples=self.config.policy.min_samples)
        thread = threading.Thread(target=Agent(self.config, hub, outbox, make_app(self.config), stop).run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(120)
            assert not thread.is_alive()
            outbox.close()
            hub.close()

    def folder(self, task_id):
        return TaskFolder(self.config.state / "tasks", task_id)

    def sent(self):
        return verify(self.config.state / "outbox" / "egress.jsonl")


@pytest.fixture
def party(live_hub):
    return live_hub.add_party()


@pytest.fixture
def site(live_hub, party, make, tmp_path):
    """A site where `patches` takes a person's word, by these limits, and `other` does not."""

    def write(**limits):
        token = live_hub.site_token(party)
        rules = [([party], ["fit", "evaluate"], ["other"]), ([party], ["fit", "evaluate"], ["patches"])]
        path = make.write_site(tmp_path / "site", url=live_hub.url, token=token, rules=rules)
        with path.open("a") as file:
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in limits.items())
        config = load_site(path)
        prepare_state(config)
        return Site(config)

    return write


def asked(site):
    return until(lambda: site.inbox.requests())[0]


def shown(job):
    task = job.refresh().tasks[0]
    return task.progress.step if task.progress is not None else None


def finish(site, make, task_id, write_json):
    """Do the work as a worker would, with made-up results."""
    folder = site.folder(task_id)
    until(lambda: (folder.path / "terms.json").exists())  # no work begins before it is allowed
    task = json.loads(folder.assignment.task.to_json())
    (folder.path / "results").mkdir()
    write_json(folder.results / "document.json", {"n": 60})
    write_json(folder.results / "candidates.json", make.candidates(task))
    save_file(make.stitches(), folder.results / "stitches.safetensors", metadata={"input_shape": "1,6,6"})
    folder.finish(Outcome(state="done"))
    return folder


def test_a_task_waits_for_approval_and_keeps_nobody_waiting(live_hub, party, site, portable):
    site = site(approval="ask")
    client = live_hub.client(party)
    job = client.stitch(MODELS, "patches")
    with site.running():
        request = asked(site)
        assert (request.party, request.action, request.dataset, request.job) == (party, "fit", "patches", job.id)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in portable]
        assert [model.sha256 for model in request.models] == digests
        assert [model.repo for model in request.models] == MODELS
        # 48 outputs of 9 products each, then two layers: counted by hand for the first network, two per product.
        assert request.estimate.flops_per_sample >= 2 * (48 * 9 + 48 * 6 + 6 * 2)
        assert request.estimate.seconds_per_1000 > 0
        assert request.estimate.peak_bytes > 1000
        until(lambda: shown(job) == "waiting for approval")
        other = client.stitch(MODELS, "other")
        until(lambda: other.refresh().tasks[0].state == "leased")
        assert live_hub.lease_end(job) > datetime.now(UTC) + timedelta(days=1), "no lease that heartbeats must renew"
        assert [(task.state, task.attempt) for task in job.refresh().tasks] == [("leased", 1)]
        assert not site.folder(request.task).busy
        # Progress is sent where fetching takes long enough to be seen.
        assert {entry.kind for entry in site.sent() if entry.task == request.task} - {"progress"} == {"wait"}


def test_what_is_approved_is_done_once_though_the_agent_ends(live_hub, party, site, make, write_json):
    site = site(approval="ask")
    job = live_hub.client(party).stitch(MODELS, "patches")
    with site.running():
        request = asked(site)
        until(lambda: shown(job) == "waiting for approval")
    with site.running():
        until(lambda: len([entry for entry in site.sent() if entry.kind == "wait"]) == 2)
        assert site.inbox.request(request.task) == request, "it is not asked again"
        site.inbox.decide(request, approved=True)
        finish(site, make, request.task, write_json)
        until(lambda: job.refresh().state == "evaluating")
        until(lambda: not site.folder(request.task).path.exists())
    task = job.refresh().tasks[0]
    assert (task.state, task.attempt) == ("done", 1)
    decisions = (site.config.state / "inbox" / "decisions.jsonl").read_text()
    assert json.loads(decisions)["approved"] is True


@pytest.mark.parametrize(("told", "code"), [(None, "policy.denied"), ("no_agreement", "policy.no_agreement")])
def test_what_is_declined_is_not_explained_unless_the_site_says_so(live_hub, party, site, told, code):
    site = site(approval="ask")
    job = live_hub.client(party).stitch(MODELS, "patches")
    with site.running():
        request = asked(site)
        site.inbox.decide(request, approved=False, reason="PATIENT-0042 objects", reply=told)
        until(lambda: job.refresh().state == "failed")
        until(lambda: site.inbox.requests() == [])
    assert job.refresh().error.code == code
    assert "PATIENT" not in (site.config.state / "outbox" / "egress.jsonl").read_text()


def test_an_approval_may_be_remembered(live_hub, party, site, make, write_json):
    site = site(approval="ask")
    client = live_hub.client(party)
    with site.running():
        client.stitch(MODELS, "patches")
        site.inbox.decide(asked(site), approved=True, remember_days=7)
        second = client.stitch(MODELS, "patches")
        task = until(lambda: second.refresh().tasks[0])
        waiting = {asked(site).task, task.id}
        while waiting:  # the site does one after the other, in either order
            begun = until(
                lambda: next((one for one in waiting if (site.folder(one).path / "terms.json").exists()), None)
            )
            until(lambda begun=begun: site.folder(begun).member(1).exists())
            finish(site, make, begun, write_json)
            waiting.remove(begun)
        until(lambda: second.refresh().tasks[0].state == "done")
    assert all(request.task != task.id for request in site.inbox.requests())


def test_a_rule_that_asks_since_the_work_was_done_is_asked(live_hub, party, site, make, write_json):
    job = live_hub.client(party).stitch(MODELS, "patches")
    before = site()
    with before.running():
        task_id = until(lambda: job.refresh().tasks[0].state == "leased" and job.status.tasks[0].id)
        until(lambda: (before.folder(task_id).path / "terms.json").exists())
    finish(before, make, task_id, write_json)
    after = site(approval="ask")
    with after.running():
        asked(after)
        until(lambda: shown(job) == "waiting for approval")
        assert {entry.kind for entry in after.sent()} <= {"progress", "wait"}
        after.inbox.decide(after.inbox.request(task_id), approved=True)
        until(lambda: job.refresh().tasks[0].state == "done")
    assert job.refresh().tasks[0].attempt == 1


def test_a_cancelled_job_is_no_longer_asked_about(live_hub, party, site):
    site = site(approval="ask")
    job = live_hub.client(party).stitch(MODELS, "patches")
    with site.running():
        asked(site)
        until(lambda: shown(job) == "waiting for approval")
        job.cancel()
        until(lambda: site.inbox.requests() == [])
        until(lambda: job.refresh().tasks[0].state == "cancelled")
        until(lambda: list((site.config.state / "tasks").iterdir()) == [])


def test_a_result_waits_for_release_and_leaves_as_it_was_shown(live_hub, party, site, make, write_json):
    site = site(release="manual")
    job = live_hub.client(party).stitch(MODELS, "patches")
    with site.running():
        task_id = until(lambda: job.refresh().tasks[0].state == "leased" and job.status.tasks[0].id)
        until(lambda: site.folder(task_id).member(1).exists())
        finish(site, make, task_id, write_json)
        (manifest,) = until(site.held.manifests)
        until(lambda: shown(job) == "waiting for release")
        assert [part.name for part in manifest.parts] == ["candidates.json", "stitches.safetensors", None]
        assert {entry.kind for entry in site.sent()} <= {"progress", "wait"}, "nothing has left"
        held = [site.held.part(manifest, number).read_bytes() for number in range(3)]
        site.held.decide(manifest, released=True)
        until(lambda: job.refresh().state == "evaluating")
        left = [entry for entry in site.sent() if entry.kind in ("file", "result") and entry.task == task_id]
    assert [entry.sha256 for entry in left] == [hashlib.sha256(content).hexdigest() for content in held]
    assert job.refresh().tasks[0].attempt == 1


def test_a_result_that_is_refused_does_not_leave(live_hub, party, site, make, write_json):
    site = site(release="manual")
    job = live_hub.client(party).stitch(MODELS, "patches")
    with site.running():
        task_id = until(lambda: job.refresh().tasks[0].state == "leased" and job.status.tasks[0].id)
        until(lambda: site.folder(task_id).member(1).exists())
        finish(site, make, task_id, write_json)
        (manifest,) = until(site.held.manifests)
        site.held.decide(manifest, released=False, reason="not this one")
        until(lambda: job.refresh().state == "failed")
    assert job.refresh().error.code == "policy.denied"
    assert {entry.kind for entry in site.sent()} <= {"progress", "wait", "decline"}
    until(lambda: site.held.manifests() == [])
