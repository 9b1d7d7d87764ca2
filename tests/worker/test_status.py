"""What a site says of itself: `suture site status`, Prometheus on the loopback address, and Celery's own tools."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.client.nearby import answering
from tests.until import until
from tests.worker.test_celery import Site
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_local.ports import free_port
from suture_worker.agent.hub import HubClient
from suture_worker.agent.metrics import serving
from suture_worker.broker import broker_url
from suture_worker.compute.celery_app import ring
from suture_worker.config import load_site, prepare_state
from suture_worker.run import _alone
from suture_worker.status import AGENT_LOCK, CONTACT, site_status


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    path = make.write_site(tmp_path_factory.mktemp("status") / "site")
    path.write_text(path.read_text().replace("[site]\n", f"[site]\ninspect = true\nmetrics_port = {free_port()}\n"))
    config = load_site(path)
    prepare_state(config)
    return config


@pytest.fixture(scope="module")
def running(site):
    with Site(site) as here:
        here.start_worker()
        yield here


def shown(site, *arguments):
    result = CliRunner().invoke(app, ["site", "status", str(site.path), *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout


def test_a_site_that_never_ran_says_so(tmp_path, make):
    with pytest.raises(SutureError) as caught:
        site_status(load_site(make.write_site(tmp_path / "site")))
    assert caught.value.code == "site.not_started"


def test_it_shows_agent_queue_workers_tasks_and_disk(running, site, data, assign, long):
    code, text = shown(site)
    assert code == 5, "no agent runs"
    assert "not running" in text
    assert "never" in text
    folder = assign(options=long)
    (site.state / CONTACT).touch()
    ring(running.app, folder.id)
    running.child(folder)
    until(lambda: folder.progress is not None and folder.progress.seconds_left is not None)
    with _alone(site.state / AGENT_LOCK):
        code, text = shown(site, "--format", "json")
        status = json.loads(text)
        assert code == 0, status
        assert (status["agent"]["running"], status["queue"]["answers"], status["queue"]["waiting"]) == (True, True, 0)
        (worker,) = status["workers"]
        assert (worker["host"], worker["devices"]) == (socket.gethostname(), ["cpu"])
        assert worker["pid"] == running.processes["worker"].pid
        (task,) = status["tasks"]
        assert (task["id"], task["state"], task["kind"]) == (folder.id, "running", "fit")
        assert task["step"]
        assert task["seconds_left"] > 0
        assert 0 < status["free_bytes"] <= status["total_bytes"]
        assert folder.id not in shown(site)[1], "people know jobs"
        assert task["job"] in shown(site)[1]

        with serving(site):
            numbers = metrics(site)
    assert numbers["suture_site_working"] == numbers["suture_site_workers"] == numbers["suture_site_places"] == 1
    assert numbers["suture_site_queue_up"] == numbers["suture_site_rules_in_order"] == 1
    assert numbers["suture_site_tasks"] == 1
    assert numbers["suture_site_step_seconds_left"] > 0
    assert abs(numbers["suture_site_last_contact_timestamp_seconds"] - time.time()) < 600
    asked = celery(site, "inspect", "active", "--json")
    ((node, active),) = json.loads(asked).items()
    assert node == f"suture-{worker['pid']}@{socket.gethostname()}", "workers are named by their machine"
    assert [entry["args"] for entry in active] == [[folder.id]], "ids alone"
    folder.cancel()
    until(lambda: folder.outcome)


def metrics(site):
    with urllib.request.urlopen(f"http://127.0.0.1:{site.site.metrics_port}/metrics", timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


def celery(site, *arguments):
    command = [sys.executable, "-m", "celery", "--broker", broker_url(site), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_events_of_tasks_are_heard_where_the_switch_is_on(running, site, data, assign, quick):
    heard = []
    with running.app.connection_for_read() as connection:
        receiver = running.app.events.Receiver(connection, handlers={"*": heard.append})
        thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=60, wakeup=True), daemon=True)
        thread.start()
        until(lambda: any(event["type"] == "worker-heartbeat" for event in heard))
        folder = assign("evaluate", dataset="other")  # no such file: soon over
        ring(running.app, folder.id)
        until(lambda: any(event["type"] == "task-succeeded" for event in heard))
        receiver.should_stop = True
        thread.join(60)
    assert {event["hostname"] for event in heard} == {
        f"suture-{running.processes['worker'].pid}@{socket.gethostname()}"
    }
    assert "NoPermission" not in running.log("worker"), "the queue's user may do what Celery's tools need"


def test_metrics_refuse_a_port_that_is_taken_and_are_off_by_default(site, make, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        here = site.site.model_copy(update={"metrics_port": taken.getsockname()[1]})
        with pytest.raises(SutureError) as caught, serving(site.model_copy(update={"site": here})):
            pass
        assert caught.value.code == "site.metrics"
    plain = load_site(make.write_site(tmp_path / "plain"))
    assert (plain.site.metrics_port, plain.site.inspect) == (None, False)
    with serving(plain):
        pass


def test_the_agent_notes_when_the_hub_answers():
    heard = []
    with answering(content=b"null") as hub:
        client = HubClient(hub.url, "suture_t_1", sleep=lambda _seconds: None, heard=lambda: heard.append(hub.seen[-1]))
        assert client.lease(0) is None
        client.close()
    assert heard == ["POST /v1/tasks/lease"]
