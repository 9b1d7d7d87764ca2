"""Two machines of a site, each with a host name, processes, files and a network of its own.

They share what docs/site-operator.md says and nothing else: the state and the data, at other paths on each, and the
queue, by TLS and password. A divided task has the same bytes as from one worker, also when either machine fails.
"""

from __future__ import annotations

import socketserver
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from tests import machines
from tests.programs import free_port
from tests.worker.test_broker_tls import Passing, authority, server_context
from tests.worker.test_celery import Site, until
from tests.worker.test_shards import OPTIONS, divided_site, shares
from tests.worker.test_two_workers import SECONDS, results

from suture_worker import broker
from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import ring
from suture_worker.compute.forkserver import NAME
from suture_worker.compute.work import work
from suture_worker.config import load_site

PASSWORD = "hunter2-canary"
#: A machine's only way out: what it dials at its own port goes through this socket, as through a cable.
CABLE = """
import socket, sys, threading
def copy(source, target):
    while content := source.recv(65536):
        target.sendall(content)
    target.shutdown(socket.SHUT_WR)
listening = socket.create_server(("127.0.0.1", 6380))
while True:
    inside = listening.accept()[0]
    outside = socket.socket(socket.AF_UNIX)
    outside.connect(sys.argv[1])
    for pair in ((inside, outside), (outside, inside)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


class Door(socketserver.ThreadingUnixStreamServer):
    """Where the cables end: speaks TLS and passes on to Redis, as Redis itself does where it was built with TLS."""

    daemon_threads = True

    def __init__(self, place: Path, context: ssl.SSLContext, port: int) -> None:
        self.context, self.port = context, port
        super().__init__(str(place), Passing)


class Machine:
    """One of them: what it mounts where, and its worker. Of all that tests write, it sees nothing else."""

    def __init__(self, name: str, mounts: dict[str, tuple[Path, bool]], hidden: Path, log: Path) -> None:
        self.name, self.mounts, self.hidden, self.log = name, mounts, hidden, log

    def start(self) -> None:
        suture = f"exec {sys.executable} -m suture site worker /mnt/site/site.toml"
        command = ["sh", "-c", f"{sys.executable} -c '{CABLE}' /mnt/net/door & {suture}"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                machines.machine(self.name, self.mounts, self.hidden, command),
                stdout=output,
                stderr=output,
                start_new_session=True,
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
def both(site, tmp_path_factory):
    """Both machines; each has the state and the data at paths of its own."""
    folder = tmp_path_factory.mktemp("between")
    machines.machine("first", {}, folder, [])  # skips where there can be none
    for name in ("net", "data"):
        (folder / name).mkdir()
    (folder / "data" / "patches.npz").hardlink_to(site.datasets["patches"].path)
    port = int(site.broker.url.rpartition(":")[2].partition("/")[0])
    server = [str(broker.find_server().program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    redis = subprocess.Popen([*server, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
    here = Site(site)
    until(here.answers)
    key, issuer, ca = authority(folder, "hospital")
    door = Door(folder / "net" / "door", server_context(folder, key, issuer, "127.0.0.1"), port)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    text = site.path.read_text().partition("[broker]")[0]
    text += f'[broker]\nurl = "rediss://:{PASSWORD}@127.0.0.1:6380/0"\nca_file = "ca.pem"\n'
    pair = []
    for name in ("first", "second"):
        own = folder / name
        own.mkdir()
        paths = text.replace("patches.npz", f"/mnt/{name}/data/patches.npz")
        (own / "site.toml").write_text(paths.replace('state = "state"', f'state = "/mnt/{name}/state"'))
        (own / "ca.pem").write_bytes(ca.read_bytes())
        (own / "tests.pub").write_bytes((site.path.parent / "tests.pub").read_bytes())
        mounts = {
            "site": (own, False),
            f"{name}/state": (site.state, True),
            f"{name}/data": (folder / "data", False),
            "net": (folder / "net", False),
        }
        pair.append(Machine(name, mounts, tmp_path_factory.getbasetemp(), folder / f"{name}.log"))
        pair[-1].start()
    yield here, pair
    for machine in pair:
        machine.fail()
    door.shutdown()
    door.server_close()
    redis.kill()
    redis.wait()


def ready(site, pair, count):
    def check():
        for machine in pair:
            assert machine.process.poll() is None or count < 2, machine.log.read_text()
        return len(workers(site.state)) == count

    until(check)


def test_a_divided_fit_has_the_same_bytes_and_outlives_either_machine(both, site, assign):
    here, pair = both
    folder = assign(options=OPTIONS)
    assert work(site, folder.id) == "done", folder.log.read_text()
    alone = results(folder)

    ready(site, pair, 2)
    assert [worker.host for worker in workers(site.state)] == ["first", "second"]
    folder = assign(options=OPTIONS)
    ring(here.app, folder.id)
    outcome = until(lambda: folder.outcome, SECONDS)
    assert outcome.state == "done", [machine.log.read_text()[-3000:] for machine in pair]
    assert results(folder) == alone
    assert sorted(shares(folder)) == ["0.0", "0.1", "1.0", "1.1"]
    until(lambda: not folder.busy)

    for failing, other in (pair, pair[::-1]):
        ready(site, pair, 2)
        folder = assign(options=OPTIONS)
        ring(here.app, folder.id)
        until(lambda f=failing, o=other: f.children() and o.children(), SECONDS)
        (lost,), (kept,) = failing.children(), other.children()
        failing.fail()
        until(lambda: places(site.state) == 1)
        until(lambda f=folder: not f.busy, SECONDS)
        assert folder.outcome is None
        ring(here.app, folder.id)  # as the agent does when nobody is at it
        assert until(lambda f=folder: f.outcome, SECONDS).state == "done", other.log.read_text()
        assert results(folder) == alone
        runs = [(folder.shares / share / "runs").read_text() for share in (lost, kept)]
        assert runs == ["2", "1"], "what the other one had done is not done again"
        until(lambda f=folder: not f.busy)
        failing.start()
