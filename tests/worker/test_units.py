"""A site's broker and worker as the units of deploy/systemd start them, with the calls alone that those allow."""

from __future__ import annotations

import hashlib
import secrets

import pytest
from tests.test_systemd import ROOT, Unit
from tests.until import until
from tests.worker.test_celery import Site

from suture.processes import Processes
from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import ring
from suture_worker.config import load_site, prepare_state


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def site(make, tmp_path, run):
    """A site whose broker is that of the unit."""
    password = secrets.token_hex(32)
    rules = (ROOT / "broker.acl").read_text().replace("DIGEST", hashlib.sha256(password.encode()).hexdigest())
    (tmp_path / "broker.acl").write_text(rules)
    file = make.write_site(tmp_path / "site")
    file.write_text(f'{file.read_text()}\n[broker]\nurl = "redis+socket://suture:{password}@{run}/broker.sock"\n')
    config = load_site(file)
    prepare_state(config)
    return config


def test_a_task_is_done_with_the_calls_that_the_units_allow(site, run, data, assign, quick, tmp_path):
    places_here = {
        "/run/suture-broker": str(run),
        "/etc/suture/broker.acl": str(tmp_path / "broker.acl"),
        "/etc/suture/site.toml": str(site.path),
    }

    def start(name):
        unit = Unit(name)
        words = unit.command()
        for inside, here in places_here.items():
            words = [word.replace(inside, here) for word in words]
        processes.start(name, unit.confined(words), log=tmp_path / f"{name}.log")

    here = Site(site)
    with Processes() as processes:
        start("broker")
        until(here.answers)
        start("worker")
        until(lambda: any((site.state / "workers").glob("[!.]*")) and places(workers(site.state)) == 1)
        folder = assign(options=quick)
        ring(here.app, folder.id)
        assert until(lambda: folder.outcome).state == "done", folder.log.read_text()
