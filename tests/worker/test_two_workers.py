"""Two real workers that share a task give what one gives; test_two_machines has what becomes of it when one fails."""

from __future__ import annotations

import json

import pytest
from tests.until import until
from tests.worker.test_celery import Site
from tests.worker.test_shards import OPTIONS, divided_site, shares

from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import ring
from suture_worker.compute.work import work

RESULTS = ("candidates.json", "stitches.safetensors", "document.json")
SECONDS = 150.0


def results(folder):
    return {name: (folder.results / name).read_bytes() for name in RESULTS if (folder.results / name).exists()}


@pytest.fixture(scope="module")
def site(make, tmp_path_factory):
    return divided_site(tmp_path_factory.mktemp("two") / "site", make)


@pytest.fixture(scope="module")
def two(site):
    """A site with two workers, as on two machines with one state folder."""
    with Site(site) as here:
        for name in ("first", "second"):
            part = Site(site)
            part.start_worker()
            here.processes[name] = part.processes["worker"]
        until(lambda: places(workers(site.state)) == 2)
        yield here


def test_two_workers_give_what_one_gives(two, site, assign):
    folder = assign(options=OPTIONS)
    assert work(site, folder.id) == "done", folder.log.read_text()
    alone = results(folder)

    folder = assign(options=OPTIONS)
    ring(two.app, folder.id)
    assert until(lambda: folder.outcome, SECONDS).state == "done", two.log("worker")
    assert results(folder) == alone
    assert sorted(shares(folder)) == ["0.0", "0.1", "1.0", "1.1"]
    assert all(json.loads((path / "outcome.json").read_text())["state"] == "done" for path in shares(folder).values())
    parts = {path.name for path in folder.checkpoint.iterdir()}
    assert {f"reading-train-{index}.safetensors" for index in range(3)} <= parts
    until(lambda: not folder.busy)

    files = {name: alone[name] for name in RESULTS[:2]}
    folder = assign("evaluate", files=files)
    ring(two.app, folder.id)
    assert until(lambda: folder.outcome, SECONDS).state == "done", two.log("worker")
    shared = results(folder)
    assert sorted(shares(folder)) == ["0.0", "0.1"]
    until(lambda: not folder.busy)
    folder = assign("evaluate", files=files)
    assert work(site, folder.id) == "done"
    assert results(folder) == shared
