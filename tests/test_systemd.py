"""The units of deploy/systemd: systemd reads them, finds them closed enough, and what they start works so confined."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests import machines
from tests.programs import program

from suture.processes import Processes
from suture_local.ports import free_port
from suture_worker import broker

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "deploy" / "systemd"
SUTURE = "/opt/suture/bin/suture"
#: The highest exposure that `systemd-analyze security` may find, of 10.
EXPOSURE = {"hub": 1.5, "broker": 1.0, "agent": 1.8, "worker": 1.2}


class Unit:
    """A unit's [Service]; what occurs several times is one text of several lines."""

    def __init__(self, name: str) -> None:
        text = (UNITS / f"suture-{name}.service").read_text().replace("\\\n", " ")
        lines: dict[str, list[str]] = {}
        for line in text.partition("[Service]")[2].partition("[Install]")[0].splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.partition("=")
                lines.setdefault(key, []).append(value)
        self.service = {key: "\n".join(values) for key, values in lines.items()}

    def command(self, key: str = "ExecStart") -> list[str]:
        """What it starts, with this environment's `suture` and this machine's Valkey or Redis."""
        words = shlex.split(self.service[key])
        if words[0] == SUTURE:
            return [sys.executable, "-m", "suture", *words[1:]]
        assert words[0] == "/usr/bin/valkey-server"
        return [str(broker.find_server().program), *words[1:]]

    def confined(self, command: list[str]) -> list[str]:
        """The command that runs `command` with the system calls alone that the unit allows."""
        return machines.with_calls(calls(self.service["SystemCallFilter"].splitlines()), command)


def calls(filters: list[str]) -> set[str]:
    """The names that a unit's lines allow."""
    allowed: set[str] = set()
    for line in filters:
        names = {name for word in line.removeprefix("~").split() for name in expanded(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | expanded("@default")


def expanded(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        [program("systemd-analyze"), "syscall-filter", word], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    words = {line.strip() for line in listed.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    return {name for inner in words if inner != word for name in expanded(inner)}


def installed(folder: Path) -> list[Path]:
    """The units as a machine has them on which everything is installed; systemd looks whether programs are there."""
    server = broker.find_server().program
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace(SUTURE, sys.executable).replace("/usr/bin/valkey-server", str(server))
        (folder / unit.name).write_text(text)
    drop_in = folder / "suture-worker.service.d"
    drop_in.mkdir()
    (drop_in / "gpu.conf").write_text((UNITS / "gpu.conf").read_text())
    return sorted(folder.glob("*.service"))


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("systemd-analyze"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_systemd_accepts_the_units(tmp_path):
    done = analyze("verify", *map(str, installed(tmp_path)))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    broken = tmp_path / "suture-hub.service"
    broken.write_text(broken.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in analyze("verify", str(broken)).stderr


@pytest.mark.parametrize("name", EXPOSURE)
def test_no_unit_is_more_open_than_it_must_be(name, tmp_path):
    for path in installed(tmp_path):
        if path.name == f"suture-{name}.service":
            threshold = f"--threshold={round(EXPOSURE[name] * 10)}"
            done = analyze("security", "--offline=yes", "--no-pager", threshold, str(path))
            assert done.returncode == 0, done.stdout


def test_only_the_agent_has_token_and_network_and_only_the_worker_has_data():
    hidden = {name: Unit(name).service.get("InaccessiblePaths", "") for name in EXPOSURE}
    private = {name: Unit(name).service.get("PrivateNetwork") for name in EXPOSURE}
    assert private == {"hub": None, "broker": "yes", "agent": None, "worker": "yes"}
    assert ["/etc/suture/token" in hidden[name] for name in ("broker", "agent", "worker")] == [True, False, True]
    assert ["/srv/suture" in hidden[name] for name in ("broker", "agent", "worker")] == [True, True, False]
    for name in EXPOSURE:
        assert Unit(name).service["ProtectSystem"] == "strict"
        assert f"u {Unit(name).service['User']} " in (UNITS / "suture.sysusers").read_text()


def test_the_queue_is_that_of_docker_compose():
    words = Unit("broker").command()
    assert words[words.index("--aclfile") + 1] == "/etc/suture/broker.acl"
    rules = (ROOT / "broker.acl").read_text()
    assert f"user {broker.USER} on #DIGEST {broker.RULES}\n" in rules


def test_the_hub_works_with_the_calls_that_its_unit_allows(tmp_path):
    unit = Unit("hub")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SUTURE_HUB_DATABASE_URL": f"sqlite:///{tmp_path}/hub.db",
        "SUTURE_HUB_STORE": str(tmp_path / "store"),
    }
    migrated = subprocess.run(
        unit.confined(unit.command("ExecStartPre")), env=environment, cwd=ROOT, capture_output=True, timeout=120
    )
    assert migrated.returncode == 0, migrated.stderr
    port = free_port()
    command = [word.replace("8420", str(port)) for word in unit.command()]
    with Processes() as processes:
        hub = processes.start("hub", unit.confined(command), log=tmp_path / "log", environment=environment)
        processes.wait_until(lambda: answers(port), "the hub answers", seconds=60)
        hub.process.send_signal(signal.SIGTERM)
        assert hub.process.wait(60) in (0, -signal.SIGTERM), (tmp_path / "log").read_text()
    refused = [sys.executable, "-c", "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"]
    assert subprocess.run(refused, timeout=60).returncode == 0
    ended = subprocess.run(unit.confined(refused), capture_output=True, text=True, timeout=60)
    assert "PermissionError" in ended.stderr, "the calls are not kept from it"


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
