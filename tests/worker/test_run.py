"""Starting and ending a site: once, all of it, and with nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from tests.until import until

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.run import run_site


@pytest.fixture
def running(site):
    command = [sys.executable, "-m", "suture", "site", "run", str(site.path)]
    environment = {**os.environ, "SUTURE_TOKEN": "secret-0042"}
    with (site.path.parent / "run.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    ready = site.state / "logs" / "worker.log"
    until(lambda: ready.exists() and "ready." in ready.read_text())
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_second_one_is_refused_and_nothing_is_left_behind(site, running, number):
    with pytest.raises(SutureError) as caught:
        run_site(site)
    assert caught.value.code == "site.running"
    assert broker.check_answers(site), "the first one's Redis is untouched"
    environments = [process.environ() for process in psutil.Process(running.pid).children()]
    assert len(environments) == 3
    assert not any("secret-0042" in str(environment) for environment in environments)

    processes = psutil.Process(running.pid).children(recursive=True)
    names = [" ".join(process.cmdline()[:4]) for process in processes]
    assert len([name for name in names if "-server unixsocket" in name]) == 1
    assert len([name for name in names if "suture_worker agent" in name]) == 1
    running.send_signal(number)
    running.wait(120)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    assert running.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert number == signal.SIGKILL or not broker.socket_path(site).exists()


def test_a_site_whose_token_is_exposed_does_not_start(site):
    site.hub.token_file.chmod(0o644)
    with pytest.raises(SutureError) as caught:
        run_site(site)
    assert caught.value.code == "site.token_exposed"


def test_only_the_child_imports_torch():
    script = """
import importlib, sys
for module in ("egress.outbox", "check", "run", "compute.celery_app", "agent.agent"):
    importlib.import_module(f"suture_worker.{module}")
    assert "torch" not in sys.modules, module
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_package_alone_imports_little():
    script = "import sys, suture_worker; sys.exit(bool({'torch', 'celery', 'redis'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
