"""Processes that are kept running, stopped in order, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from suture_worker.stop import Stop
from suture_worker.supervise import SitePart, pause_before, supervise

NOTE = (
    "import os, signal, sys, time; from pathlib import Path\n"
    "log = Path(sys.argv[1]).open('a')\n"
    "print(os.getpid(), file=log, flush=True)\n"
)
WAITS = NOTE + "time.sleep(600)\n"
ENDS = NOTE + "sys.exit(3)\n"
STUBBORN = (
    NOTE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', file=log, flush=True)\ntime.sleep(600)\n"
)
#: Leaves a process of its own behind when it ends.
PARENT = NOTE + (
    "import subprocess\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, file=log, flush=True)\ntime.sleep(600)\n"
)


@pytest.fixture
def part(tmp_path):
    def make(name, script):
        return SitePart(name, [sys.executable, "-c", script, str(tmp_path / name)], tmp_path / f"{name}.log")

    return make


def lines(tmp_path: Path, name: str) -> list[str]:
    path = tmp_path / name
    return path.read_text().splitlines() if path.exists() else []


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_until(parts, condition, seconds=120.0):
    """Supervise in this thread, as it must be, until another one sees that `condition` holds."""
    stop, held = Stop(), []

    def watch():
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not condition():
            time.sleep(0.05)
        held.append(condition())
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    supervise(parts, stop, environment=dict(os.environ))
    watcher.join()
    assert held == [True]


def test_all_run_and_all_are_stopped(part, tmp_path):
    parts = [part(name, WAITS) for name in ("a", "b", "c")]
    run_until(parts, lambda: all(lines(tmp_path, name) for name in "abc"))
    pids = [int(lines(tmp_path, name)[0]) for name in "abc"]
    assert not any(running(pid) for pid in pids)


def test_what_ends_is_started_again(part, tmp_path):
    run_until([part("a", ENDS)], lambda: len(lines(tmp_path, "a")) >= 2)
    assert len(set(lines(tmp_path, "a"))) >= 2


def test_the_quicker_command_is_for_the_first_start_alone(part, tmp_path):
    usual = part("a", NOTE + "print('usual', file=log, flush=True)\n")
    first = replace(usual, first=part("a", NOTE + "print('first', file=log, flush=True)\n").command)
    run_until([first], lambda: len(lines(tmp_path, "a")) >= 4)
    assert lines(tmp_path, "a")[1:4:2] == ["first", "usual"]


def test_another_program_ends_with_the_process_that_started_it(tmp_path):
    script = (
        "import subprocess, sys\nfrom suture_worker.compute.tied import tied\n"
        "started = subprocess.Popen(tied(['/bin/sleep', '600']))\nprint(started.pid, flush=True)\nstarted.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert running(pid)
        starter.kill()
    deadline = time.monotonic() + 120
    while running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_killed_is_started_again_and_leaves_nothing(part, tmp_path):
    def again():
        seen = lines(tmp_path, "a")
        if len(seen) == 2 and running(int(seen[0])):
            os.kill(int(seen[0]), signal.SIGKILL)
        return len(seen) >= 4

    run_until([part("a", PARENT)], again)
    deadline = time.monotonic() + 120
    while any(running(int(pid)) for pid in lines(tmp_path, "a")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_does_not_listen_is_killed(part, tmp_path, monkeypatch):
    monkeypatch.setattr("suture_worker.supervise.GRACE_SECONDS", 0.5)
    run_until([part("a", STUBBORN)], lambda: "ready" in lines(tmp_path, "a"))
    assert not running(int(lines(tmp_path, "a")[0]))


def test_output_goes_to_a_log_of_this_user_alone(part, tmp_path):
    run_until(
        [part("a", NOTE + "print('hello', flush=True)\ntime.sleep(600)\n")], lambda: "hello" in lines(tmp_path, "a.log")
    )
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_large_log_is_moved_aside(part, tmp_path, monkeypatch):
    monkeypatch.setattr("suture_worker.supervise.MAX_LOG", 10)
    (tmp_path / "a.log").write_text("x" * 20)
    run_until([part("a", WAITS)], lambda: bool(lines(tmp_path, "a")))
    assert (tmp_path / "a.log.1").read_text() == "x" * 20


def test_pauses_double_up_to_a_minute():
    assert [pause_before(n) for n in (1, 2, 3, 7, 8, 1000)] == [1, 2, 4, 60, 60, 60]
