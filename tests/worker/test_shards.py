"""A task that two real workers share: the same result as from one, also when one of them is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest
from tests.worker.children import children_of
from tests.worker.test_celery import Site, until

from suture_worker.agent.heartbeat import onward
from suture_worker.capacity import MAX_PLACES, offering, places
from suture_worker.compute import shards
from suture_worker.compute.celery_app import ring
from suture_worker.compute.work import work, work_share
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.outbox import STEPS
from suture_worker.folder import Outcome, TaskProgress

OPTIONS = {"refine_steps": 10, "refine_candidates": 2, "max_matches": 2, "alphas": [0.5]}
RESULTS = ("candidates.json", "stitches.safetensors", "document.json")
SECONDS = 150.0


@pytest.fixture
def site(tmp_path, make):
    config = load_site(make.write_site(tmp_path / "site", limits="divide_seconds = 0\n"))
    prepare_state(config)
    make.save_patches(config.datasets["patches"].path, n=6000)
    return config


@pytest.fixture
def two(site):
    """A site with two workers, as on two machines with one state folder."""
    here = Site(site)
    here.start("redis")
    until(here.answers)
    for name in ("first", "second"):
        part = Site(site)
        part.start_worker()
        here.processes[name] = part.processes["worker"]
    until(lambda: places(site.state) == 2)
    yield here
    for process in reversed(here.processes.values()):
        if process.poll() is None:
            process.kill()
        process.wait()


def results(folder):
    return {name: (folder.results / name).read_bytes() for name in RESULTS if (folder.results / name).exists()}


def shares(folder):
    return {path.name: path for path in folder.shares.glob("*.*")}


def children(folder):
    """The processes that compute shares of the task, by step and number."""
    return {share: process for share, process in children_of(folder).items() if share}


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


def test_the_share_of_a_killed_worker_is_done_by_the_other(two, site, assign):
    folder = assign(options=OPTIONS)
    ring(two.app, folder.id)
    both = until(lambda: found if len(found := children(folder)) == 2 else None, SECONDS)
    kept, lost = sorted(both)  # of one step, whichever was seen first
    worker = both[lost].parent().parent().parent()
    assert worker.pid in {two.processes[name].pid for name in ("first", "second")}
    worker.kill()
    until(lambda: places(site.state) == 1)
    until(lambda: not folder.busy, SECONDS)
    assert folder.outcome is None
    ring(two.app, folder.id)  # as the agent does when nobody is at it
    assert until(lambda: folder.outcome, SECONDS).state == "done", two.log("worker")
    assert (folder.shares / kept / "runs").read_text() == "1"
    assert (folder.shares / lost / "runs").read_text() == "2"
    shared = results(folder)
    until(lambda: not folder.busy)
    folder = assign(options=OPTIONS)
    assert work(site, folder.id) == "done"
    assert results(folder) == shared


def test_a_share_that_fails_ends_the_task_and_one_that_was_cancelled_does(site, assign):
    asked = []
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(offering(site.state, 1))
        folder = assign(options=OPTIONS)
        assert work(site, folder.id, asked.extend) == "divided"
    assert [(share.step, share.index) for share in asked] == [("capture", 0), ("capture", 1)]
    assert folder.outcome is None
    with asked[0].locked():
        assert folder.busy
        assert work_share(site, folder.id, "capture", 0) == "another worker is at it"
        assert work(site, folder.id, asked.extend) == "its shares are under way"
    assert work_share(site, folder.id, "refine", 0) == "there is no such share"
    assert work_share(site, folder.id, "../x", 0) == "there is no such share"
    assert work_share(site, folder.id, "capture", 2) == "there is no such share"
    folder.member(1).write_bytes(b"damaged")
    assert work_share(site, folder.id, "capture", 1) == "failed"
    assert folder.outcome.code.startswith("model.")  # type: ignore[attr-defined]
    assert work_share(site, folder.id, "capture", 0) == "it is done already"

    folder = assign(options=OPTIONS)
    shards.divide(folder, 2)
    folder.cancel()
    assert asked[0].cancelled
    assert work(site, folder.id, asked.extend) == "cancelled"


def test_work_is_divided_among_those_who_are_free_and_only_if_it_takes_long(site, assign, quick):
    folder = assign(options=quick)
    assert work(site, folder.id, lambda _shares: pytest.fail("nobody is there to share it with")) == "done"
    long = site.model_copy(update={"limits": site.limits.model_copy(update={"divide_seconds": 3600.0})})
    with offering(site.state, 2):
        folder = assign(options=quick)
        assert work(long, folder.id, lambda _shares: pytest.fail("it is over soon")) == "done"
        assert shares(folder) == {}


def test_progress_of_shares_adds_up(site, assign):
    folder = assign()
    folder.results.mkdir()
    folder.write_progress(TaskProgress(step="match", done=1, total=1))
    shards.divide(folder, 3)
    every = shards.left(folder)
    assert [share.share.count for share in every] == [3, 3, 3]
    with every[0].locked(), every[1].locked():
        assert folder.progress.step == "match"
        for share, done in zip(every[:2], (3, 4), strict=True):
            share.results.mkdir()
            share.write_progress(TaskProgress(step="solve", done=done, total=10, seconds_left=done))
        assert folder.progress == TaskProgress(step="solve", done=7, total=20, seconds_left=4)
    for share in every:
        share.finish(Outcome(state="done"))
    assert {share.step for share in shards.left(folder)} == {"refine"}
    folder.create(folder.assignment)
    assert shards.left(folder) == []


def test_workers_that_run_are_counted(site):
    assert places(site.state) == 1
    with offering(site.state, 2):
        assert places(site.state) == 2
        with offering(site.state, 3):
            assert places(site.state) == 5
        with offering(site.state, 1000):
            assert places(site.state) == MAX_PLACES
    script = (
        "import sys, time; from pathlib import Path; from suture_worker.capacity import offering\n"
        "with offering(Path(sys.argv[1]), 4): print('here', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(site.state)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        assert places(site.state) == 4
        other.kill()
    assert places(site.state) == 1
    assert list((site.state / "workers").iterdir()) == []


def test_a_composition_is_not_shared(assign):
    assert shards.steps(assign().assignment.task) == ("capture", "refine")
    assert shards.steps(assign(options={"refine": False}).assignment.task) == ("capture",)
    assert shards.steps(assign("compose", dataset=None).assignment.task) == ()


def test_progress_of_a_divided_task_is_never_told_backwards(site, assign):
    folder = assign()
    folder.results.mkdir()
    folder.write_progress(TaskProgress(step="solve", done=4, total=20, seconds_left=90))
    told = [onward(None, folder.progress)]
    shards.divide(folder, 2)

    def hear(share, step, done, total, left=None):
        share.results.mkdir(exist_ok=True)
        share.write_progress(TaskProgress(step=step, done=done, total=total, seconds_left=left))
        told.append(onward(told[-1], folder.progress))

    one, other = shards.left(folder)
    with one.locked(), other.locked():
        hear(one, "match", 1, 1)
        hear(one, "solve", 1, 10, 30.0)
        hear(other, "solve", 1, 10, 33.0)
        assert told[-1] == TaskProgress(step="solve", done=4, total=20, seconds_left=33.0)
        hear(one, "solve", 10, 10)
        hear(other, "solve", 10, 10)
    for share in (one, other):
        share.finish(Outcome(state="done"))
    one, other = shards.left(folder)
    with one.locked(), other.locked():
        hear(one, "double", 3, 3)
        hear(one, "refine", 12, 24)
        hear(other, "stitch", 1, 3)
        hear(other, "refine", 2, 24)
        assert told[-1] == TaskProgress(step="refine", done=12, total=24)
        hear(other, "refine", 14, 24)
        assert told[-1] == TaskProgress(step="refine", done=26, total=48)
    for share in (one, other):
        share.finish(Outcome(state="done"))
    folder.write_progress(TaskProgress(step="stitch", done=1, total=3))
    told.append(onward(told[-1], folder.progress))
    folder.write_progress(TaskProgress(step="fit", done=1, total=1, seconds_left=0))
    told.append(onward(told[-1], folder.progress))
    order = [STEPS.index(progress.step) + progress.done / progress.total for progress in told]
    assert order == sorted(order)
    assert [one.step for one in told] == sorted((one.step for one in told), key=STEPS.index)
    assert told[-1].step == "fit"
