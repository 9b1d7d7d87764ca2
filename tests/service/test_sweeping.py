"""Hub processes on one PostgreSQL, two with wrong clocks: each lapsed lease is opened again once, none early."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from suture_service.settings import Settings

JOBS = 12
#: A hub that only sweeps; its machine's clock is wrong by so many hours.
SWEEPER = """
import asyncio, sys
from datetime import timedelta
from suture_service import hub
from suture_service.database import Database
from suture_service.jobs.flow import sweep_until_closing
from suture_service.observe import Metrics
from suture_service.settings import Settings
from suture_service.storage import BlobStore

url, store, hours = sys.argv[1:]
right = hub.utc_now
hub.utc_now = lambda: right() + timedelta(hours=float(hours))
settings = Settings(database_url=url, store=store, sweep_seconds=0.02, lease_seconds=3)
asyncio.run(sweep_until_closing(hub.Hub(settings, Database(url), BlobStore(store), Metrics())))
"""


@pytest.fixture
def settings(postgres, tmp_path):
    return Settings(database_url=postgres.fresh(), store=str(tmp_path / "store"), lease_seconds=3)


@contextmanager
def sweeping(settings, *, hours):
    command = [sys.executable, "-c", SWEEPER, settings.database_url, settings.store, str(hours)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def north(world):
    """A hub with open fits of `north`, as that party's site sees it."""
    for _ in range(JOBS):
        assert world.ask(evaluate_at=[]).status_code == 201
    return world.sites["north"]


@pytest.fixture
def database_url(settings):
    return settings.database_url


def test_lapsed_leases_are_opened_again_once(world, north, settings):
    held = [north.lease() for _ in range(JOBS)]
    assert len({task["id"] for task in held}) == JOBS
    with sweeping(settings, hours=2), sweeping(settings, hours=-2), sweeping(settings, hours=0):
        deadline = time.monotonic() + 8  # most of it is the start of three processes
        while time.monotonic() < deadline:
            for task in held:
                answer = north.tell(task, "heartbeat")
                assert answer.status_code == 200, answer.text
            time.sleep(0.3)
        until_open = time.monotonic() + 20
        while any(task["state"] == "leased" for job in all_jobs(world) for task in job["tasks"]):
            assert time.monotonic() < until_open
            time.sleep(0.1)
        time.sleep(0.5)  # long enough for any of them to do it again
    for job in all_jobs(world):
        (task,) = job["tasks"]
        assert (task["state"], task["attempt"], task["reason"]) == ("open", 2, "task.lease_expired")
        events = world.north.get(f"/v1/jobs/{job['id']}/events").json()["items"]
        changes = [(event["data"]["from"], event["data"]["state"]) for event in events if event["kind"] == "task"]
        assert changes == [(None, "open"), ("open", "leased"), ("leased", "open")]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def all_jobs(world):
    return world.north.get("/v1/jobs", params={"limit": 100}).json()["items"]
