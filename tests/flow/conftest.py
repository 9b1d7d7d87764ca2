"""Whole installations: a hub, sites with their own agents, Celery workers and Redis, and parties that ask."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.conftest import Databases

from suture.bundle import export_model
from suture.hub import Hub
from suture_local import digits
from suture_local.installation import Installation
from suture_local.story import PartyData
from suture_local.training import train

LABELS = digits.LABELS
#: Seconds after which a command hangs, however busy the machine is.
LONGEST = 1200


@pytest.fixture(scope="session")
def data() -> dict[str, PartyData]:
    return digits.parties(0)


@pytest.fixture(scope="session")
def exported(data: dict[str, PartyData], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A portable model of each party, in a folder that can be published."""
    import torch

    folders = {}
    for party, images in data.items():
        module = train(digits.network(party), *images.of("train"), epochs=5)
        folders[party] = tmp_path_factory.mktemp(party)
        metadata = export_model(
            module,
            torch.from_numpy(images.inputs[:2]),
            folders[party] / "model.safetensors",
            labels=LABELS,
            license="CC0-1.0",
            value_range=(0.0, 1.0),
        )
        (folders[party] / "suture.json").write_text(metadata.to_json())
    return folders


@dataclass(frozen=True)
class Place:
    """A running installation with the sites of north and south; east has a site that is not started."""

    here: Installation
    hubs: dict[str, Hub]


@pytest.fixture(scope="module")
def place(
    postgres: Databases,
    tmp_path_factory: pytest.TempPathFactory,
    data: dict[str, PartyData],
    exported: dict[str, Path],
) -> Iterator[Place]:
    """On PostgreSQL; the demo and the other installations in these tests are on SQLite."""
    root = tmp_path_factory.mktemp("place")
    with Installation(root, database_url=postgres.empty()) as here:
        here.start_hub()
        for party in ("north", "south", "east"):
            here.add_party(party)
        allow: dict[str, dict[str, list[str]]]
        allow = {"north": {"north": ["fit", "evaluate"]}, "south": {"north": ["evaluate"]}, "east": {}}
        for party, rules in allow.items():
            path = root / party / "data" / "digits.npz"
            digits.save(path, data["south" if party == "east" else party])
            here.add_site(party, {"digits": digits.described(path)}, allow=rules, limits={"threads": 1})
        for party in digits.PARTIES:
            here.start_site(party)
        here.wait_until_ready()
        hubs = {party: Hub(here.url, here.token(party)) for party in ("north", "south", "east")}
        for party in digits.PARTIES:
            key = here.signing_key(party)
            hubs[party].publish_file(
                exported[party], f"{party}/digits", key=key, visibility="all", show=lambda _parcel: None
            )
        here.wait_until_online(*digits.PARTIES)
        yield Place(here, hubs)


class Command:
    """`suture …` as a process of its own, and all processes that were seen to descend from it."""

    #: Seconds between two looks at all processes of the machine: a look takes some hundredths of a second itself.
    _BETWEEN_LOOKS = 0.5

    def __init__(self, *arguments: str, home: Path) -> None:
        self.output = home / "output.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "suture", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache")},
            )
        self.family: set[psutil.Process] = {psutil.Process(self.process.pid)}
        self._looked = 0.0

    def look(self) -> None:
        """Note the present descendants, unless that was done a moment ago."""
        if time.monotonic() < self._looked + self._BETWEEN_LOOKS:
            return
        parents: dict[psutil.Process, int] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                parents[process] = process.ppid()
        known = {process.pid for process in self.family}
        while new := {process for process, parent in parents.items() if parent in known} - self.family:
            self.family |= new
            known |= {process.pid for process in new}
        self._looked = time.monotonic()

    def wait_for(self, text: str) -> str:
        return self.wait_until(lambda: text in self.output.read_text())

    def wait_until(self, condition: Callable[[], bool]) -> str:
        """Return the output so far as soon as `condition` holds, which it must before the command ends."""
        deadline = time.monotonic() + LONGEST
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
            self.look()
        return self.output.read_text()

    def wait(self) -> int:
        deadline = time.monotonic() + LONGEST
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        return self.process.returncode

    def left_running(self) -> list[psutil.Process]:
        """What is still there a moment after the end."""
        return psutil.wait_procs(list(self.family), timeout=60)[1]

    def end(self) -> None:
        """Leave nothing behind, also when a test fails."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        for process in self.left_running():
            process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def suture() -> Iterator[type[Command]]:
    """Start `suture` with some arguments; ended at the latest when the module's tests are over."""
    started: list[Command] = []

    class Started(Command):
        def __init__(self, *arguments: str, home: Path) -> None:
            super().__init__(*arguments, home=home)
            started.append(self)

    yield Started
    for command in started:
        command.end()
