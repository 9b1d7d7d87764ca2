"""A worker that a batch job starts, by the script itself, and that is told to stop before the job's time is over."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.until import until
from tests.worker.test_celery import Site, gone

from suture_worker import broker
from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import ring
from suture_worker.config import load_site, prepare_state

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "suture-worker.sbatch"


def batch(folder: Path, drain: int) -> Path:
    """The script with this environment's `suture` and another time to drain; Slurm's lines are comments to bash."""
    text = SCRIPT.read_text()
    for shown, here in (("/opt/suture/bin/suture", f"{sys.executable} -m suture"), ("--drain 540", f"--drain {drain}")):
        assert shown in text
        text = text.replace(shown, here)
    script = folder / "job.sbatch"
    script.write_text(text)
    return script


class Jobs(Site):
    """A site whose broker runs all the time, and whose workers are batch jobs."""

    def submit(self, script: Path) -> subprocess.Popen[bytes]:
        before = self.log("worker").count("ready.") if "worker" in self.processes else 0
        with (self.config.state / "logs" / "worker.log").open("ab") as output:
            job = subprocess.Popen(
                ["bash", str(script)],
                stdout=output,
                stderr=output,
                env={**os.environ, "SUTURE_SITE": str(self.config.path)},
                start_new_session=True,
            )
        self.processes["worker"] = job
        until(lambda: self.log("worker").count("ready.") > before)
        return job


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    config = load_site(make.write_site(tmp_path_factory.mktemp("slurm") / "site"))
    prepare_state(config)
    return config


@pytest.fixture(scope="module")
def jobs(site):
    with Jobs(site) as here:
        yield here


def test_slurm_stops_it_earlier_than_it_needs_to_drain():
    text = SCRIPT.read_text()
    warned = int(re.search(r"--signal=B:TERM@(\d+)", text)[1])
    drain = int(re.search(r"--drain (\d+)", text)[1])
    assert warned - drain >= 60, "Slurm may warn up to a minute late"


def test_it_ends_what_it_has_begun_takes_nothing_new_and_hands_back_what_takes_too_long(
    jobs, data, assign, quick, long, tmp_path
):
    job = jobs.submit(batch(tmp_path, drain=600))
    begun = assign(options=quick)
    ring(jobs.app, begun.id)
    until(lambda: begun.busy)
    waits = assign("evaluate", dataset="other")
    ring(jobs.app, waits.id)
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 0, jobs.log("worker")
    assert begun.outcome.state == "done", begun.log.read_text()
    assert (waits.outcome, broker.waiting(jobs.config)) == (None, 1)
    assert not list((jobs.config.state / "workers").iterdir()), "the agent leases nothing for it any more"

    job = jobs.submit(batch(tmp_path, drain=1))
    until(lambda: waits.outcome)
    taken = assign(options=long)
    ring(jobs.app, taken.id)
    child = jobs.child(taken)
    job.send_signal(signal.SIGTERM)
    job.wait(120)
    until(lambda: gone(child))
    until(lambda: not taken.busy)
    assert (taken.outcome, (taken.path / "runs").read_text()) == (None, "0"), "a stop is no failed attempt"

    jobs.submit(batch(tmp_path, drain=1))  # nobody rings: Celery has handed it back
    assert jobs.child(taken).pid != child.pid
    assert (places(workers(jobs.config.state)), (taken.path / "runs").read_text()) == (1, "1")
    taken.cancel()
    assert until(lambda: taken.outcome).state == "cancelled"
