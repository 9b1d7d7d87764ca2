"""The process that forks children: used for all of them, one each, and no longer there than its worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.until import until

from suture_worker.compute import forkserver
from suture_worker.compute.forkserver import ForkServer

#: Does not import what a task needs: each child says who and where it is, and does what its task's id says.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
from suture_worker.compute import child, forkserver

def do(folder):
    print(json.dumps({"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "at": os.getcwd(),
        "home": os.environ["HOME"], "input": os.read(0, 1).decode()}))
    sys.stdout.flush()
    if folder.id == "task_crashes":
        os.abort()
    while folder.id == "task_waits":
        pass
    if folder.id == "task_leaves" and os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        place = Path("left")
        place.with_suffix(".new").write_text(str(os.getpid()))
        place.with_suffix(".new").rename(place)
        time.sleep(600)
    while folder.id == "task_leaves" and not Path("left").exists():
        pass

child.main = do
forkserver._import = lambda: None
forkserver.main(sys.argv[1:])
"""


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(forkserver, "COMMAND", ("-I", "-B", "-c", STAND_IN))
    server = ForkServer()
    yield server
    server.stop()


@pytest.fixture
def place(tmp_path, site):
    def make(name):
        folder = forkserver.TaskFolder(site.state / "tasks", f"task_{name}")  # type: ignore[attr-defined]
        folder.scratch.mkdir(parents=True, exist_ok=True)
        return folder

    return make


def ended(child):
    assert child.wait(120) is not None
    return child.end()


def test_each_task_has_a_child_of_its_own_from_the_same_server(stand_in, site, place):
    running = stand_in.start(site.state)
    said = []
    for name in ("first", "second"):
        folder = place(name)
        assert ended(stand_in.fork(folder)) == 0
        said.append(json.loads(folder.log.read_text()))
        assert said[-1]["parent"] == running.pid
        assert said[-1]["session"] == said[-1]["pid"]
        assert (said[-1]["at"], said[-1]["home"]) == (str(folder.scratch),) * 2
        assert said[-1]["input"] == ""
        assert not Path(f"/proc/{said[-1]['pid']}").exists()
    assert said[0]["pid"] != said[1]["pid"]
    assert stand_in.start(site.state) is running


def test_a_child_that_crashed_takes_its_server_with_it(stand_in, site, place):
    running = stand_in.start(site.state)
    assert ended(stand_in.fork(place("crashes"))) == -signal.SIGABRT
    assert running.poll() is not None
    assert ended(stand_in.fork(place("next"))) == 0


def test_a_child_that_does_not_end_is_killed(stand_in, place):
    folder = place("waits")
    child = stand_in.fork(folder)
    until(lambda: folder.log.exists() and folder.log.read_text().endswith("\n"))
    assert child.wait(0.1) is None
    assert child.end() == -signal.SIGKILL
    assert not Path(f"/proc/{child._pid}").exists()


def test_what_a_child_leaves_in_another_session_ends_with_it(stand_in, site, place):
    running = stand_in.start(site.state)
    folder = place("leaves")
    assert ended(stand_in.fork(folder)) == 0
    left = int((folder.scratch / "left").read_text())
    assert not Path(f"/proc/{left}").exists()
    assert stand_in.start(site.state) is running


@pytest.mark.parametrize("busy", [False, True])
def test_a_server_that_was_killed_is_replaced(stand_in, site, place, busy):
    running = stand_in.start(site.state)
    if busy:
        child = stand_in.fork(place("waits"))
        until(lambda: child.wait(0.05) is None and child._pid)
        running.kill()
        assert ended(child) == -signal.SIGKILL
        until(lambda: not psutil.pid_exists(child._pid))
    else:
        running.kill()
        until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE)
    assert ended(stand_in.fork(place("next"))) == 0
    assert stand_in.start(site.state) is not running


def test_server_and_child_end_with_their_worker(site, place):
    script = f"""
import sys
from pathlib import Path
from suture_worker.compute import forkserver
forkserver.COMMAND = ("-I", "-B", "-c", {STAND_IN!r})
folder = forkserver.TaskFolder(Path({str(site.state / "tasks")!r}), "task_waits")
server = forkserver.ForkServer()
child = server.fork(folder)
while not child._pid:
    child.wait(0.1)
print(server.start(folder.path).pid, child._pid, flush=True)
child.wait(600)
"""
    place("waits")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pids = list(map(int, worker.stdout.readline().split()))
        assert all(map(psutil.pid_exists, pids))
        worker.kill()
    until(lambda: not any(map(psutil.pid_exists, pids)))


def test_what_is_imported_starts_no_thread_opens_nothing_and_asks_for_no_device():
    script = """
import os, sys
from pathlib import Path
from suture_worker.compute import confine, forkserver
before = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
forkserver._import()
import torch
confine.need_one_thread()
after = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
assert not [place for place in after - before if place.startswith(("socket:", "/dev", "anon_inode:"))], after - before
assert not torch.cuda.is_initialized()
assert {"torch", "sympy", "suture_stitching.fitting.fit"} <= sys.modules.keys()
assert not {"torch._dynamo", "httpx"} & sys.modules.keys()
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
