"""Nothing that was started stays, however its starter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from suture.processes import Processes
from suture_contract.errors import SutureError

#: How long to wait for what takes a moment: only a failure takes so long, however slow the machine.
SECONDS = 120
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)",
]
STARTER = """
import sys, time
from pathlib import Path
from suture.processes import Processes

with Processes() as processes:
    child = processes.start("child", [sys.executable, "-c", {child!r}], log=Path("log"))
    print(child.process.pid, flush=True)
    {then}
"""
CHILD = (
    "from suture.processes import end_with_parent; end_with_parent()\nprint('up', flush=True)\n"
    "import time; time.sleep(600)"
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8") if Path("/proc").is_dir() else True


def gone(pid: int) -> bool:
    deadline = time.monotonic() + SECONDS
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@contextmanager
def starter(folder: Path, then: str = "time.sleep(600)") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started a child, and the child's id, once both are up."""
    script = STARTER.format(child=CHILD, then=then)
    with subprocess.Popen([sys.executable, "-c", script], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            deadline = time.monotonic() + SECONDS
            while "up" not in ((folder / "log").read_text() if (folder / "log").exists() else ""):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process, pid
        finally:
            process.kill()


def test_the_end_of_the_block_ends_the_processes(tmp_path: Path) -> None:
    with Processes() as processes:
        pids = [processes.start(name, SLEEP, log=tmp_path / name).process.pid for name in ("a", "b")]
        assert all(alive(pid) for pid in pids)
    assert all(gone(pid) for pid in pids)


def test_an_error_halfway_ends_the_processes(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(RuntimeError), Processes() as processes:  # noqa: PT012
        pid = processes.start("a", SLEEP, log=tmp_path / "a").process.pid
        raise RuntimeError
    assert gone(pid)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, None), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_the_processes(tmp_path: Path, sent: signal.Signals, status: int | None) -> None:
    if sent is signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends a child whose parent was killed")
    with starter(tmp_path) as (process, pid):
        process.send_signal(sent)
        process.communicate(timeout=SECONDS)
        assert process.returncode not in (0, None)
        assert status is None or process.returncode == status
        assert gone(pid)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("by", ["check", "start", "the end"])
def test_a_signal_is_heeded_though_it_came_where_python_drops_what_is_raised(
    tmp_path: Path, sent: signal.Signals, raised: type[BaseException], by: str
) -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(sent)

    before, pid, went_on = signal.getsignal(sent), 0, False
    with pytest.raises(raised), Processes() as processes:  # noqa: PT012
        pid = processes.start("a", SLEEP, log=tmp_path / "a").process.pid
        Dropping()
        went_on = True
        if by == "check":
            processes.check()
        elif by == "start":
            processes.start("b", SLEEP, log=tmp_path / "b")
    assert went_on
    assert gone(pid)
    assert not (tmp_path / "b").exists()
    assert signal.getsignal(sent) == before


def test_impatience_while_stopping_leaves_nothing(tmp_path: Path) -> None:
    with starter(tmp_path) as (process, pid):
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        process.communicate(timeout=SECONDS)
        assert gone(pid)


def test_who_does_not_listen_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suture.processes.GRACE_SECONDS", 0.2)
    with Processes() as processes:
        child = processes.start("stubborn", STUBBORN, log=tmp_path / "log")
        processes.wait_until(lambda: (tmp_path / "log").read_text().endswith("\n"), "it is up", seconds=SECONDS)
        grandchild = int((tmp_path / "log").read_text())
        assert alive(grandchild)
    assert gone(child.process.pid)
    assert gone(grandchild)


def test_waiting_ends_when_a_process_ends_and_shows_its_last_words(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "print('the port is taken'); raise SystemExit(3)"]
    with Processes() as processes:
        processes.start("hub", dying, log=tmp_path / "log")
        with pytest.raises(SutureError, match="the port is taken") as caught:
            processes.wait_until(lambda: False, "until the hub answers", seconds=SECONDS)
    assert caught.value.code == "process.ended"
    assert "hub" in (caught.value.where or "")


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with Processes() as processes:
        processes.start("hub", SLEEP, log=tmp_path / "log")
        with pytest.raises(SutureError) as caught:
            processes.wait_until(lambda: False, "until the hub answers", seconds=0.1)
    assert caught.value.code == "process.slow"
    assert str(tmp_path / "log") in (caught.value.hint or "")


def test_a_child_gets_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_TOKEN", "suture_north_secret")
    printing = [sys.executable, "-c", "import os; print(sorted(n for n in os.environ if n.startswith('SUTURE_')))"]
    with Processes() as processes:
        child = processes.start("a", printing, log=tmp_path / "log", environment={"SUTURE_HUB_STORE": "x"})
        child.process.wait(SECONDS)
    assert (tmp_path / "log").read_text().strip() == "['SUTURE_END_WITH', 'SUTURE_HUB_STORE']"


def test_one_process_can_be_stopped_alone(tmp_path: Path) -> None:
    with Processes() as processes:
        first = processes.start("first", SLEEP, log=tmp_path / "1").process
        second = processes.start("second", SLEEP, log=tmp_path / "2").process
        processes.stop("first")
        assert gone(first.pid)
        assert second.poll() is None
        processes.check()
