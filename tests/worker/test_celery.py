"""A real Celery worker on the site's own Redis: what goes over the broker, and work that survives being killed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.until import until
from tests.worker.children import children_of

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.compute.celery_app import TASK, make_app, ring
from suture_worker.config import load_site, prepare_state
from suture_worker.folder import TaskFolder


class Site:
    """A site's Redis and worker as processes of their own."""

    def __init__(self, config):
        self.config = config
        self.app = make_app(config)
        self.processes = {}

    def __enter__(self):
        self.start("redis")
        until(self.answers)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.kill()
            process.wait()

    def start(self, name):
        command = [sys.executable, "-m", "suture_worker", name, str(self.config.path), str(os.getpid())]
        with (self.config.state / "logs" / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def log(self, name):
        return (self.config.state / "logs" / f"{name}.log").read_text()

    def answers(self):
        try:
            return broker.check_answers(self.config)
        except SutureError:
            return False

    def start_worker(self):
        """Start the worker unless it runs."""
        if "worker" in self.processes and self.processes["worker"].poll() is None:
            return
        before = self.log("worker").count("ready.") if "worker" in self.processes else 0
        self.start("worker")
        until(lambda: self.log("worker").count("ready.") > before)

    def end(self, name, number=signal.SIGKILL):
        process = self.processes[name]
        process.send_signal(number)
        process.wait(120)

    def pool(self):
        """The processes in which Celery runs tasks."""
        children = psutil.Process(self.processes["worker"].pid).children()
        return [child for child in children if "suture_worker" in " ".join(child.cmdline())]

    def child(self, folder):
        """The process that computes, once it does."""

        def find():
            if folder.progress is None or folder.progress.step == "load":
                return None
            return children_of(folder).get("")

        return until(find)


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    """One site for all tests."""
    config = load_site(make.write_site(tmp_path_factory.mktemp("celery") / "site"))
    prepare_state(config)
    return config


@pytest.fixture(autouse=True)
def _no_task_is_left(site):
    yield
    for path in (site.state / "tasks").iterdir():
        TaskFolder(path.parent, path.name).remove()


@pytest.fixture(scope="module")
def running(site):
    """The site's Redis, and its worker once a test has started it: it serves the next ones, too."""
    with Site(site) as here:
        yield here


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_message_is_json_and_holds_an_id(running):
    ring(running.app, "task_fit")
    assert broker.waiting(running.config) == 1
    with broker.connect(running.config) as client:
        message = json.loads(client.rpop(broker.QUEUE))
    assert message["content-type"] == "application/json"
    arguments, keywords, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == (["task_fit"], {})
    assert message["headers"]["task"] == TASK


def test_the_worker_does_a_task_and_outlives_its_child(running, data, assign, quick, long):
    running.start_worker()
    folder = assign(options=quick)
    ring(running.app, folder.id)
    ring(running.app, folder.id)  # a message may come twice
    until(lambda: folder.outcome)
    assert folder.outcome.state == "done", folder.log.read_text()
    assert int((folder.path / "runs").read_text()) == 1
    until(lambda: broker.waiting(running.config) == 0)

    folder = assign(options=long)
    ring(running.app, folder.id)
    running.child(folder).send_signal(signal.SIGSEGV)
    until(lambda: folder.outcome)
    assert folder.outcome.code == "model.crashed"
    assert running.processes["worker"].poll() is None

    password = (running.config.state / "redis" / "password").read_text()
    assert not [name for name in running.processes if password in running.log(name)]

    folder = assign("evaluate", dataset="other")  # no such file: the worker is still there to say so
    ring(running.app, folder.id)
    assert until(lambda: folder.outcome).code == "dataset.missing_path"


def test_hostile_messages_do_nothing(running, data, assign, quick, tmp_path):
    running.start_worker()
    trap = tmp_path / "trap"
    headers = {"lang": "py", "task": TASK, "id": "x", "argsrepr": "", "kwargsrepr": ""}
    properties = {"delivery_info": {"exchange": "", "routing_key": broker.QUEUE}, "delivery_tag": "x"}

    class Trap:
        def __reduce__(self):
            return (Path(trap).touch, ())

    def message(body, content_type="application/json", **changes):
        return {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if content_type == "application/json" else "binary",
            "content-type": content_type,
            "headers": {**headers, **changes},
            "properties": {**properties, "body_encoding": "base64"},
        }

    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    hostile = [
        message(pickle.dumps(([Trap()], {}, embedded)), "application/x-python-serialize"),
        message(json.dumps([["../../../etc"], {}, embedded]).encode()),
        message(json.dumps([[{"x": 1}], {}, embedded]).encode()),
        message(json.dumps([[], {"folder": "/etc"}, embedded]).encode()),
        message(json.dumps([["task_fit"], {}, embedded]).encode(), task="os.system"),
    ]
    with broker.connect(running.config) as client:
        for entry in hostile:
            client.lpush(broker.QUEUE, json.dumps(entry))
    folder = assign("evaluate", dataset="other")
    ring(running.app, folder.id)
    assert until(lambda: folder.outcome).code == "dataset.missing_path"
    assert not trap.exists()
    assert running.processes["worker"].poll() is None


def test_celery_delivers_again_when_its_process_is_killed(running, data, assign, long):
    running.start_worker()
    folder = assign(options=long)
    ring(running.app, folder.id)
    child = running.child(folder)
    (pool,) = running.pool()
    pool.kill()
    until(lambda: gone(child))
    until(lambda: (folder.path / "runs").read_text() == "2")
    folder.cancel()
    assert until(lambda: folder.outcome).state == "cancelled"


def test_a_killed_worker_leaves_no_process_and_no_outcome(running, data, assign, long):
    running.start_worker()
    folder = assign(options=long)
    ring(running.app, folder.id)
    child, (pool,) = running.child(folder), running.pool()
    running.end("worker")
    until(lambda: gone(child) and gone(pool))
    assert folder.outcome is None
    until(lambda: not folder.busy)
    running.start_worker()
    ring(running.app, folder.id)
    running.child(folder)
    assert (folder.path / "runs").read_text() == "2"
    folder.cancel()
    assert until(lambda: folder.outcome).state == "cancelled"


def test_a_worker_told_to_stop_does_so_in_the_middle_of_a_task(running, data, assign, long):
    running.start_worker()
    folder = assign(options=long)
    ring(running.app, folder.id)
    child, (pool,) = running.child(folder), running.pool()
    running.end("worker", signal.SIGTERM)
    until(lambda: gone(child) and gone(pool))
    assert folder.outcome is None
