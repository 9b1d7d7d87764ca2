"""Whatever ends a test run, nothing that it started stays: no PostgreSQL server, no child, no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.leftovers import MARK

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by their environment")

# What the run starts: a server that is shared by all workers, and a child that Ctrl-C and SIGTERM do not end.
RUN = """
import os, signal, subprocess, sys, time, types
from pathlib import Path
# What is in the server does not matter here: to import the hub and to migrate takes longer than all the rest.
operate = types.SimpleNamespace(migrate=lambda settings: None)
sys.modules["suture_service"] = types.SimpleNamespace(operate=operate)
sys.modules["suture_service.settings"] = types.SimpleNamespace(Settings=dict)
NOTE = Path(__file__).with_name("started")
IGNORING = "[signal.signal(number, signal.SIG_IGN) for number in (2, 15)]"
STUBBORN = f"import signal, time; {IGNORING}; print(flush=True); time.sleep(600)"

def test_that_does_not_end(postgres):
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    server = int((postgres.folder / "data" / "postmaster.pid").read_text().split()[0])
    NOTE.with_suffix(".new").write_text(f"{os.getpid()} {child.pid} {server} {postgres.folder.parent}")
    NOTE.with_suffix(".new").rename(NOTE)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "pytest"),
        (signal.SIGTERM, "pytest"),
        (signal.SIGKILL, "pytest"),
        (signal.SIGKILL, "worker"),
    ],
    ids=str,
)
def test_nothing_stays(tmp_path, number, whom):
    (tmp_path / "test_run.py").write_text(RUN)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["-p", "xdist", "-p", "pytest_timeout", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-n", "1", "--max-worker-restart", "0", str(tmp_path / "test_run.py")]
    with (tmp_path / "output").open("wb") as output:
        run = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            start_new_session=True,
        )
    note = tmp_path / "started"
    while not note.exists():
        assert run.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)
    worker, child, server, folder = note.read_text().split()
    started = [psutil.Process(int(pid)) for pid in (worker, child, server)]
    started += [process for one in list(started) for process in one.children(recursive=True)]
    started += [process for process in psutil.process_iter() if f"{MARK}={folder}" in _environment(process)]
    os.kill(run.pid if whom == "pytest" else int(worker), number)
    run.wait(120)
    left = psutil.wait_procs(started, timeout=60)[1]
    assert [process.cmdline() for process in left] == []
    keepers = [process for process in psutil.process_iter() if folder in _line(process)]
    psutil.wait_procs(keepers, timeout=60)
    assert not Path(folder).exists()


def _environment(process: psutil.Process) -> str:
    try:
        return " ".join(f"{name}={value}" for name, value in process.environ().items())
    except psutil.Error:
        return ""


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
