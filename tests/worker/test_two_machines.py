"""Two machines of a site, each with a host name, processes, files and a network of its own.

They share what docs/site-operator.md says and nothing else: the data, at other paths on each, the queue, by TLS and
password, and for the files of tasks either the state folder or a bucket, by TLS. A divided task has the same bytes as
from one worker, also when either machine fails.
"""

from __future__ import annotations

import os
import socketserver
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from tests import machines
from tests.until import until
from tests.worker.test_broker_tls import Passing, authority, server_context
from tests.worker.test_celery import Site
from tests.worker.test_shards import OPTIONS, divided_site, shares
from tests.worker.test_two_workers import SECONDS, results

from suture_local.ports import free_port
from suture_worker import broker
from suture_worker.capacity import workers
from suture_worker.compute.celery_app import ring
from suture_worker.compute.forkserver import NAME
from suture_worker.compute.work import work
from suture_worker.config import TaskStoreConfig, load_site
from suture_worker.shared import shared_by

PASSWORD = "hunter2-canary"
#: Shares that are refined for long enough for a machine to fail in the middle of one.
LONG = {**OPTIONS, "refine_steps": 400}
#: A machine's only ways out: what it dials at its own ports goes through these sockets, as through cables.
CABLES = """
import socket, sys, threading
def copy(source, target):
    while content := source.recv(65536):
        target.sendall(content)
    target.shutdown(socket.SHUT_WR)
def serve(port, place):
    listening = socket.create_server(("127.0.0.1", port))
    while True:
        inside = listening.accept()[0]
        outside = socket.socket(socket.AF_UNIX)
        outside.connect(place)
        for pair in ((inside, outside), (outside, inside)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
threading.Thread(target=serve, args=(6381, "/mnt/net/store")).start()
serve(6380, "/mnt/net/queue")
"""
KEY = {"AWS_ACCESS_KEY_ID": "site", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}


class Door(socketserver.ThreadingUnixStreamServer):
    """Where a cable ends: speaks TLS and passes on to a server, as that itself does where it was built with TLS."""

    daemon_threads = True

    def __init__(self, place: Path, context: ssl.SSLContext, port: int) -> None:
        self.context, self.port = context, port
        super().__init__(str(place), Passing)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class Machine:
    """One of them: what it mounts where, and its worker. Of all that tests write, it sees nothing else."""

    def __init__(self, name: str, mounts: dict[str, tuple[Path, bool]], hidden: Path, log: Path) -> None:
        self.name, self.mounts, self.hidden, self.log = name, mounts, hidden, log

    def start(self) -> None:
        suture = f"exec {sys.executable} -m suture site worker /mnt/site/site.toml"
        command = ["sh", "-c", f"{sys.executable} -c '{CABLES}' & {suture}"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                machines.machine(self.name, self.mounts, self.hidden, command),
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **KEY, "SSL_CERT_FILE": "/mnt/site/ca.pem"},
            )

    def children(self) -> dict[str, psutil.Process]:
        """The processes in which it computes shares, by step and number."""
        at_work = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                place = Path(process.cwd())
                if process.name() == NAME and place.parent.parent.name == "shares":
                    at_work[place.parent.name] = process
            except psutil.Error:
                continue
        return at_work

    def fail(self) -> None:
        """As by a power cut: all its processes end at once."""
        self.process.kill()
        self.process.wait(60)


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    config = divided_site(tmp_path_factory.mktemp("machines") / "site", make)
    text = config.path.read_text()
    config.path.write_text(f'{text}\n[broker]\nurl = "redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"\n')
    return load_site(config.path)


@pytest.fixture(scope="module")
def queue(site):
    port = int(site.broker.url.rpartition(":")[2].partition("/")[0])
    server = [str(broker.find_server().program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    redis = subprocess.Popen([*server, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
    here = Site(site)
    until(here.answers)
    yield here
    redis.kill()
    redis.wait()


@contextmanager
def machines_of(site, tmp_path_factory, store=None):
    """Two machines that share the site's state, or instead the bucket of a store, at paths of their own."""
    folder = tmp_path_factory.mktemp("between")
    machines.machine("first", {}, folder, [])  # skips where there can be none
    for name in ("net", "data"):
        (folder / name).mkdir()
    (folder / "data" / "patches.npz").hardlink_to(site.datasets["patches"].path)
    key, issuer, ca = authority(folder, "hospital")
    context = server_context(folder, key, issuer, "127.0.0.1")
    urls = {"queue": site.broker.url.partition("@")[2], **({"store": store.endpoint} if store else {})}
    doors = [
        Door(folder / "net" / name, context, int(url.rpartition(":")[2].partition("/")[0]))
        for name, url in urls.items()
    ]
    text = site.path.read_text().partition("[broker]")[0]
    text += f'[broker]\nurl = "rediss://:{PASSWORD}@127.0.0.1:6380/0"\nca_file = "ca.pem"\n'
    if store is not None:
        text += f'[task_store]\nurl = "{store.url}"\nendpoint = "https://127.0.0.1:6381"\n'
    pair = []
    for name in ("first", "second"):
        own = folder / name
        (own / "state").mkdir(parents=True)
        paths = text.replace("patches.npz", f"/mnt/{name}/data/patches.npz")
        (own / "site.toml").write_text(paths.replace('state = "state"', f'state = "/mnt/{name}/state"'))
        (own / "ca.pem").write_bytes(ca.read_bytes())
        (own / "tests.pub").write_bytes((site.path.parent / "tests.pub").read_bytes())
        mounts = {
            "site": (own, False),
            f"{name}/state": (site.state if store is None else own / "state", True),
            f"{name}/data": (folder / "data", False),
            "net": (folder / "net", False),
        }
        pair.append(Machine(name, mounts, tmp_path_factory.getbasetemp(), folder / f"{name}.log"))
        pair[-1].start()
    try:
        yield pair
    finally:
        for machine in pair:
            machine.fail()
        for door in doors:
            door.close()


def ready(site, pair, count):
    def check():
        for machine in pair:
            assert machine.process.poll() is None or count < 2, machine.log.read_text()
        return len(shared_by(site).workers()) == count

    until(check)


def refining(here, assign, one, two):
    """Return a task of which each machine refines a share now, and these two; one that ended before is asked anew."""

    def together():
        at_work = [[share for share in machine.children() if share.startswith("1.")] for machine in (one, two)]
        return at_work if all(at_work) else None

    for _ in range(10):
        folder = assign(options=LONG)
        ring(here.app, folder.id)
        at_work = until(lambda: together() or outcome_of(folder), SECONDS)  # noqa: B023
        if isinstance(at_work, list):
            (lost,), (kept,) = at_work
            return folder, lost, kept
        until(lambda: not folder.busy)  # noqa: B023
    raise AssertionError("the machines never refined at the same time")


def outcome_of(folder):
    folder.refresh()
    return folder.outcome


def runs_of(site, folder):
    """How often each share was begun, as a worker sees it."""
    with shared_by(site).opened(folder.id) as seen:
        return {path.name: int((path / "runs").read_text()) for path in shares(seen).values()}


@pytest.fixture(scope="module")
def alone():
    """What one worker gives, from the first test that asks."""
    return {}


def one_alone(site, assign, alone):
    if not alone:
        folder = assign(options=LONG)
        assert work(site, folder.id) == "done", folder.log.read_text()
        alone |= results(folder)


def outlives_either(here, site, pair, assign, alone):
    """Have each machine fail while both refine, and the other one finish: nothing is done again but what was lost."""
    for failing, other in (pair, pair[::-1]):
        ready(site, pair, 2)
        folder, lost, kept = refining(here, assign, failing, other)
        failing.fail()
        until(lambda: len(shared_by(site).workers()) == 1)
        until(lambda f=folder: not f.busy, SECONDS)
        assert outcome_of(folder) is None
        ring(here.app, folder.id)  # as the agent does when nobody is at it
        assert until(lambda f=folder: outcome_of(f), SECONDS).state == "done", other.log.read_text()
        assert results(folder) == alone
        runs = runs_of(site, folder)
        assert (runs[lost], runs[kept]) == (2, 1), "what the other one had done is not done again"
        until(lambda f=folder: not f.busy)
        failing.start()


def test_a_divided_fit_has_the_same_bytes_and_outlives_either_machine(queue, site, assign, alone, tmp_path_factory):
    one_alone(site, assign, alone)
    with machines_of(site, tmp_path_factory) as pair:
        ready(site, pair, 2)
        assert [worker.host for worker in workers(site.state)] == ["first", "second"]
        outlives_either(queue, site, pair, assign, alone)


def test_machines_that_share_a_bucket_and_no_folder_do_so_too(
    queue, site, assign, alone, tmp_path_factory, s3_server, monkeypatch
):
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)
    assert httpx.put(f"{s3_server}/tasks-of-a-site", timeout=60).is_success
    store = TaskStoreConfig(url="s3://tasks-of-a-site/suture", endpoint=s3_server)
    stored = site.model_copy(update={"task_store": store})

    def assign_stored(**spec):
        folder = shared_by(stored).task(assign(**spec).id)
        folder.place.remove(folder)  # what an earlier one of this name left
        assert folder.publish()
        return folder

    one_alone(site, assign, alone)
    with machines_of(site, tmp_path_factory, store) as pair:
        ready(stored, pair, 2)
        assert [worker.host for worker in shared_by(stored).workers()] == ["first", "second"]
        outlives_either(queue, stored, pair, assign_stored, alone)
    left = list((pair[0].mounts["first/state"][0] / "tasks").iterdir())
    assert left == [], "machines have no task but in the bucket"
