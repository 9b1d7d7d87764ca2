"""Hub processes on one PostgreSQL, two with wrong clocks: each lapsed lease is opened again once, none early."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from suture_service.settings import Settings

JOBS = 12
LEASE = 6
#: A hub that only sweeps; its machine's clock is wrong by so many hours.
SWEEPER = f"""
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from suture_service import hub
from suture_service.database import Database
from suture_service.jobs.lifecycle import sweep_until_closing
from suture_service.observe import Metrics
from suture_service.settings import Settings
from suture_service.storage import BlobStore

url, store, hours, up = sys.argv[1:]
right = hub.utc_now
hub.utc_now = lambda: right() + timedelta(hours=float(hours))
settings = Settings(database_url=url, store=store, sweep_seconds=0.02, lease_seconds={LEASE})
Path(up).touch()
asyncio.run(sweep_until_closing(hub.HubContext(settings, Database(url), BlobStore(store), Metrics())))
"""


@pytest.fixture
def settings(postgres, tmp_path):
    return Settings(database_url=postgres.fresh(), store=str(tmp_path / "store"), lease_seconds=LEASE)


@contextmanager
def sweeping(settings, up, *, hours):
    command = [sys.executable, "-c", SWEEPER, settings.database_url, settings.store, str(hours), str(up)]
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


def test_lapsed_leases_are_opened_again_once(world, north, settings, tmp_path):
    ups = [tmp_path / name for name in ("ahead", "behind", "right")]
    held = [north.lease() for _ in range(JOBS)]
    assert len({task["id"] for task in held}) == JOBS
    with (
        sweeping(settings, ups[0], hours=2) as ahead,
        sweeping(settings, ups[1], hours=-2) as behind,
        sweeping(settings, ups[2], hours=0) as right,
    ):
        all_sweep = None
        while all_sweep is None or time.monotonic() < all_sweep + 2:
            assert [process.poll() for process in (ahead, behind, right)] == [None] * 3
            for task in held:
                answer = north.tell(task, "heartbeat")
                assert answer.status_code == 200, answer.text
            if all_sweep is None and all(up.exists() for up in ups):
                all_sweep = time.monotonic()
            time.sleep(0.3)
        until_open = time.monotonic() + 120
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
