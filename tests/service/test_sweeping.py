"""Hub processes on one PostgreSQL, two with wrong clocks: each lapsed lease is opened again once, none early."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import select
from tests.until import until

from suture_service.settings import Settings
from suture_service.tables import Task

JOBS = 12
#: Seconds of a lease: less than the clocks are wrong by, and more than any machine takes for the test.
LEASE = 3600
#: So many rounds are long enough for a sweeper to do what it should not.
ROUNDS = 10
#: A hub that only sweeps, and writes a byte for each time that it did; its machine's clock is wrong by so many hours.
SWEEPER = f"""
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from suture_service import hub
from suture_service.database import Database
from suture_service.jobs import lifecycle
from suture_service.observe import Metrics
from suture_service.settings import Settings
from suture_service.storage import BlobStore

url, store, hours, rounds = sys.argv[1:]
sweep_once = lifecycle.sweep_once

def counted(hub):
    sweep_once(hub)
    with Path(rounds).open("ab") as file:
        file.write(b".")

lifecycle.sweep_once = counted
right = hub.utc_now
hub.utc_now = lambda: right() + timedelta(hours=float(hours))
settings = Settings(database_url=url, store=store, sweep_seconds=0.02, lease_seconds={LEASE})
asyncio.run(lifecycle.sweep_until_closing(hub.HubContext(settings, Database(url), BlobStore(store), Metrics())))
"""


@pytest.fixture
def settings(postgres, tmp_path):
    return Settings(database_url=postgres.fresh(), store=str(tmp_path / "store"), lease_seconds=LEASE)


class Sweeper:
    """One of these hubs."""

    def __init__(self, settings, rounds, hours):
        self._rounds = rounds
        rounds.touch()
        command = [sys.executable, "-c", SWEEPER, settings.database_url, settings.store, str(hours), str(rounds)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def rounds(self):
        """How often it has swept."""
        assert self.process.poll() is None
        return self._rounds.stat().st_size


@contextmanager
def sweeping(settings, folder):
    """Three of them: one is ahead, one is behind, and one is right."""
    sweepers = []
    try:
        for hours in (2, -2, 0):
            sweepers.append(Sweeper(settings, folder / f"{hours}", hours))
        yield sweepers
    finally:
        for sweeper in sweepers:
            sweeper.process.kill()
            sweeper.process.wait()


def let_sweep(sweepers):
    """Wait until each has swept several times from now on."""
    wanted = [sweeper.rounds + ROUNDS for sweeper in sweepers]
    until(lambda: all(sweeper.rounds >= rounds for sweeper, rounds in zip(sweepers, wanted, strict=True)))


@pytest.fixture
def north(world):
    """A hub with open fits of `north`, as that party's site sees it."""
    for _ in range(JOBS):
        assert world.ask(evaluate_at=[]).status_code == 201
    return world.sites["north"]


@pytest.fixture
def database_url(settings):
    return settings.database_url


def test_lapsed_leases_are_opened_again_once(world, north, settings, tmp_path):
    held = [north.lease() for _ in range(JOBS)]
    assert len({task["id"] for task in held}) == JOBS
    with sweeping(settings, tmp_path) as sweepers:
        let_sweep(sweepers)
        assert states(world) == ["leased"] * JOBS
        with world.hub.database.writing() as session:
            for task in session.scalars(select(Task)):
                task.lease_expires_at -= timedelta(seconds=1.5 * LEASE)
        until(lambda: "leased" not in states(world))
        let_sweep(sweepers)
    for job in all_jobs(world):
        (task,) = job["tasks"]
        assert (task["state"], task["attempt"], task["reason"]) == ("open", 2, "task.lease_expired")
        events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
        changes = [(event["data"]["from"], event["data"]["state"]) for event in events if event["kind"] == "task"]
        assert changes == [(None, "open"), ("open", "leased"), ("leased", "open")]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def states(world):
    return [task["state"] for job in all_jobs(world) for task in job["tasks"]]


def all_jobs(world):
    return world.north.get("/v1/jobs", params={"limit": 100}).json()["items"]
