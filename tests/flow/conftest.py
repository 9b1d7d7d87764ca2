"""Whole installations: a hub, sites with their own agents, Celery workers and Redis, and parties that ask."""

from __future__ import annotations

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
    """A running installation with the sites of north and south; east has a site that is never started."""

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
        for party in digits.PARTIES:
            path = root / party / "data" / "digits.npz"
            digits.save(path, data[party])
            dataset = digits.described(path)
            actions = ["fit", "evaluate"] if party == "north" else ["evaluate"]
            here.add_site(party, {"digits": dataset}, allow={"north": actions}, limits={"threads": 1})
            here.start_site(party)
        here.add_site("east", {}, allow={})
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
    """`suture …` as a process of its own, and all processes that ever descended from it."""

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

    def look(self) -> str:
        """Note the present descendants and return the output so far."""
        for process in list(self.family):
            try:
                self.family.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return self.output.read_text()

    def wait_for(self, text: str) -> str:
        return self.wait_until(lambda: text in self.output.read_text())

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = 240) -> str:
        """Return the output so far as soon as `condition` holds, which it must before the command ends."""
        deadline = time.monotonic() + seconds
        self.look()
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
            self.look()
        return self.output.read_text()

    def wait(self, *, seconds: float = 240) -> int:
        deadline = time.monotonic() + seconds
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
