"""The agent against a live hub, without a worker: leases, policy, restarts, outages, cancelling."""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager

import pytest
from tests.until import until

from suture.errors import AuthError, Refused
from suture_contract.files import telling
from suture_worker.agent.agent import Agent
from suture_worker.agent.fetching import Fetching
from suture_worker.agent.hub import HubClient
from suture_worker.agent.retry import back_off
from suture_worker.capacity import offering
from suture_worker.compute.celery_app import make_app
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.log import verify
from suture_worker.egress.outbox import OF_THE_SITE, Outbox
from suture_worker.folder import TaskFolder
from suture_worker.stop import Stop

MODELS = ["north/net", "south/net"]


pytestmark = pytest.mark.usefixtures("looked_at_once", "heard_soon")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("suture_worker.agent.agent.LEASE_WAIT", 0.5)


@pytest.fixture
def party(live_hub):
    return live_hub.add_party()


@pytest.fixture
def site_of(live_hub, make, tmp_path):
    def write(party, *, rules=None, name="site", url=None, token=None):
        rules = rules if rules is not None else [([party], ["fit", "evaluate"], ["patches"])]
        token = token or live_hub.site_token(party)
        config = load_site(make.write_site(tmp_path / name, url=url or live_hub.url, token=token, rules=rules))
        prepare_state(config)
        return config

    return write


class Running:
    def __init__(self, config):
        self.config = config
        self.stop = Stop()
        self.error = None
        #: The pauses after which it asks the hub again.
        self.pauses = []
        self.hub = HubClient(config.hub.url, config.hub.token_file.read_text().strip(), sleep=self._pause)
        self.outbox = Outbox(config.state / "outbox", min_samples=config.policy.min_samples)
        self.agent = Agent(config, self.hub, self.outbox, make_app(config), self.stop)
        self.thread = threading.Thread(target=self._run)

    def _pause(self, seconds):
        self.pauses.append(seconds)
        self.stop.wait(seconds)

    def _run(self):
        try:
            self.agent.run()
        except AuthError as error:
            self.error = error

    def tasks(self):
        return sorted(path.name for path in (self.config.state / "tasks").iterdir())

    def folder(self):
        return TaskFolder(self.config.state / "tasks", self.tasks()[0])


@contextmanager
def agent(config):
    running = Running(config)
    running.thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        running.thread.join(120)
        assert not running.thread.is_alive()
        running.outbox.close()
        running.hub.close()


def kept(live_hub, job):
    """Wait until a heartbeat has renewed the lease of the job's task."""
    end = live_hub.lease_end(job)
    until(lambda: live_hub.lease_end(job) > end)


def ended(job):
    return until(lambda: job.refresh().state in ("failed", "complete", "cancelled") and job.status)


def taken(running):
    """Wait until the site holds a task with its members, ready for a worker."""
    return until(lambda: running.tasks() and running.folder().member(1).exists() and running.folder())


def test_what_no_rule_allows_is_declined(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    config = site_of(party, rules=[])
    with agent(config):
        status = ended(job)
    assert (status.state, status.error.code) == ("failed", "policy.denied")
    entries = verify(config.state / "outbox" / "egress.jsonl")
    assert [(entry.kind, entry.body) for entry in entries] == [("decline", '{"code":"policy.denied","fence":1}')]


@pytest.mark.parametrize("dataset", ["other", "nothing"])
def test_an_unknown_and_a_forbidden_dataset_look_the_same(live_hub, party, site_of, dataset):
    job = live_hub.client(party).stitch(MODELS, dataset)
    with agent(site_of(party)):
        status = ended(job)
    assert (status.state, status.error.code) == ("failed", "dataset.unknown")


def test_a_task_is_fetched_verified_and_kept_for_the_worker(live_hub, party, site_of, portable):
    live_hub.client(party).stitch(MODELS, "patches")
    with agent(site_of(party)) as running:
        folder = taken(running)
        assert [folder.member(index).read_bytes() for index in (0, 1)] == [path.read_bytes() for path in portable]
        assert folder.assignment.dataset == "patches"
        assert folder.assignment.task.job.requester == party
        modes = {path.stat().st_mode & 0o077 for path in folder.path.rglob("*")}
        assert modes == {0}


def test_a_disk_that_fills_while_models_are_fetched(live_hub, party, site_of, monkeypatch):
    """The task is given out again, and done when there is room."""
    fetch, full = Fetching.fetch, iter([True])

    def fetched(self, task, folder, heartbeat):
        if next(full, False):
            with telling(folder.path):
                raise OSError(errno.ENOSPC, "no space is left")
        fetch(self, task, folder, heartbeat)

    monkeypatch.setattr(Fetching, "fetch", fetched)
    job = live_hub.client(party).stitch(MODELS, "patches")
    with agent(site_of(party)) as running:
        taken(running)
        (task,) = job.refresh().tasks
        assert (task.state, task.attempt, task.reason) == ("leased", 2, "site.disk_full")


def test_as_many_tasks_are_leased_as_there_are_devices(live_hub, party, site_of):
    jobs = [live_hub.client(party).stitch(MODELS, "patches") for _ in range(3)]
    config = site_of(party)

    def leased():
        return [job.refresh().tasks[0].state for job in jobs].count("leased")

    with agent(config) as running:
        taken(running)
        (first,) = (job for job in jobs if job.refresh().tasks[0].state == "leased")
        kept(live_hub, first)
        assert leased() == 1
        with offering(config.state, 2):  # another worker was started
            until(lambda: leased() == 2)
            for job in [job for job in jobs if job.status.tasks[0].state == "leased"]:
                kept(live_hub, job)
            assert (leased(), len(running.tasks())) == (2, 2)
            first.cancel()
            until(lambda: leased() == 2 and first.refresh().tasks[0].state == "cancelled")
    assert [job.refresh().tasks[0].attempt for job in jobs] == [1, 1, 1]


def test_the_lease_is_kept_by_heartbeats(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    with agent(site_of(party)) as running:
        taken(running)
        kept(live_hub, job)
        task = job.refresh().tasks[0]
        assert (task.state, task.attempt) == ("leased", 1)


def test_a_restarted_agent_goes_on(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    config = site_of(party)
    with agent(config) as running:
        folder = taken(running)
    assert folder.exists
    with agent(config):
        kept(live_hub, job)
        task = job.refresh().tasks[0]
        assert (task.state, task.attempt) == ("leased", 1)
        assert folder.assignment.task.fence == 1


def test_a_rule_taken_back_holds_for_a_task_under_way(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    with agent(site_of(party)) as running:
        folder = taken(running)
    with agent(site_of(party, rules=[])):
        assert ended(job).error.code == "policy.denied"
        until(lambda: not folder.path.exists())


def test_a_lease_lost_meanwhile_is_dropped_and_taken_anew(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    config = site_of(party)
    with agent(config) as running:
        folder = taken(running)
    (folder.path / "left").touch()
    folder.checkpoint.mkdir()
    (folder.checkpoint / "moments.safetensors").write_text("half")
    live_hub.lapse(job)
    with agent(config):
        until(lambda: job.refresh().tasks[0].state == "leased" and folder.exists)
        assert folder.assignment.task.fence == 2
        assert not (folder.path / "left").exists()
        until(lambda: folder.checkpoint.exists())
        assert (folder.checkpoint / "moments.safetensors").read_text() == "half"


def test_another_site_s_lease_is_not_disturbed(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    first, second = site_of(party, name="first"), site_of(party, name="second")
    with agent(first) as running:
        folder = taken(running)
    live_hub.lapse(job)
    with agent(second) as other, agent(first) as running:
        taken(other)
        until(lambda: running.tasks() == [])
        kept(live_hub, job)
        assert job.refresh().tasks[0].attempt == 2
        assert running.tasks() == []
    assert not folder.exists


def test_cancelling_a_job_frees_the_site(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    with agent(site_of(party)) as running:
        taken(running)
        job.cancel()
        until(lambda: running.tasks() == [])
    assert ended(job).tasks[0].state == "cancelled"


def test_an_agent_that_is_there_first_waits_for_the_hub(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    live_hub.stop()
    try:
        with agent(site_of(party)) as running:
            until(lambda: running.pauses)
            assert running.thread.is_alive()
            live_hub.start()
            taken(running)
    finally:
        live_hub.start_if_away()
    assert job.refresh().tasks[0].state == "leased"


def test_a_wrong_token_ends_the_agent(live_hub, party, site_of):
    with agent(site_of(party, token="suture_site_wrong")) as running:
        running.thread.join(120)
        assert isinstance(running.error, AuthError)
        assert "suture_site_wrong" not in str(running.error)


def test_a_task_that_is_not_in_order_is_given_back(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    running = Running(site_of(party))
    leased = running.hub.lease(1)
    running.agent._begin({**leased, "spec": {"members": "PATIENT-0042"}})
    running.outbox.close()
    running.hub.close()
    assert (ended(job).error.code, running.tasks()) == ("task.invalid", [])
    entries = verify(running.config.state / "outbox" / "egress.jsonl")
    assert [entry.kind for entry in entries] == ["fail"]
    assert "PATIENT" not in entries[0].body


@pytest.mark.parametrize("leased", ["what no rule allows", "nothing, at once"])
def test_a_hub_that_keeps_the_site_busy_for_nothing_is_asked_less_often(live_hub, party, site_of, leased, monkeypatch):
    """Else it would fill the log of what left, or take a processor for ever."""
    monkeypatch.setattr("suture_worker.agent.agent.LEASE_WAIT", 1000)
    live_hub.client(party).stitch(MODELS, "patches")
    running = Running(site_of(party, rules=[]))
    task = running.hub.lease(1) if leased == "what no rule allows" else None
    asked, pauses, wait = [], [], running.stop.wait

    def lease(_wait):
        asked.append(None)
        if len(asked) == 40:
            running.stop.set()
        return task

    def counted(seconds):
        pauses.append(seconds)
        return wait(0)

    running.hub.lease, running.stop.wait = lease, counted
    running.agent.run()
    running.outbox.close()
    running.hub.close()
    # The first ones are answered at once.
    assert 20 <= len(pauses) <= 30
    assert min(pauses[5:]) > 4


def test_a_member_that_is_not_what_was_promised(live_hub, party, site_of):
    job = live_hub.client(party).stitch(MODELS, "patches")
    running = Running(site_of(party))
    leased = running.hub.lease(1)
    leased["spec"]["members"][1]["sha256"] = "0" * 64
    running.agent._begin(leased)
    running.outbox.close()
    running.hub.close()
    assert ended(job).error.code == "member.mismatch"
    assert not (running.config.state / "cache" / ("0" * 64)).exists()


def test_the_token_is_nowhere_in_state(live_hub, party, site_of):
    live_hub.client(party).stitch(MODELS, "patches")
    config = site_of(party)
    with agent(config) as running:
        taken(running)
    token = config.hub.token_file.read_bytes().strip()
    held = [path for path in config.state.rglob("*") if path.is_file()]
    assert len(held) > 5
    assert not [path for path in held if token in path.read_bytes()]


def test_pauses_double_up_to_a_minute_and_are_spread():
    assert [back_off(n, lambda: 1.0) for n in (1, 2, 3, 7, 100)] == [1, 2, 4, 60, 60]
    assert [back_off(n, lambda: 0.0) for n in (1, 2, 100)] == [0.5, 1, 30]


def test_names_of_datasets_are_told_only_where_the_operator_wants_it(live_hub, party, site_of):
    rules = [([party], ["fit"], ["patches"]), (["south"], ["evaluate"], ["other"])]
    config = site_of(party, rules=rules)
    with agent(config):
        pass
    assert verify(config.state / "outbox" / "egress.jsonl") == []
    telling = config.model_copy(update={"hub": config.hub.model_copy(update={"tell_datasets": True})})
    client = live_hub.client(party)
    with agent(telling):
        until(lambda: verify(telling.state / "outbox" / "egress.jsonl"))
        refused = until(lambda: refusal(client))
    assert refused.code == "dataset.unknown"
    assert "did you mean 'patches'" in str(refused)
    assert "other" not in str(refused)
    with agent(config):
        until(lambda: not (config.state / "told_datasets").exists())
    # Besides, the agent may have declined what was asked for before the hub had heard.
    entries = verify(config.state / "outbox" / "egress.jsonl")
    kinds = [(entry.kind, entry.body) for entry in entries if entry.task == OF_THE_SITE.task]
    assert kinds == [("datasets", '{"datasets":["patches"]}'), ("datasets", '{"datasets":null}')]
    assert client.stitch(MODELS, "ptches").status.state == "queued"


def refusal(client):
    """Ask for a dataset that there is not; return the hub's refusal, None while it has not heard which there are."""
    try:
        client.stitch(MODELS, "ptches")
    except Refused as error:
        return error
    return None
