"""A task that is divided: when, into what, how far it is, and how its shares end."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from suture_worker.agent.heartbeat import onward
from suture_worker.capacity import MAX_PLACES, offering, places, workers
from suture_worker.compute import shards
from suture_worker.compute.work import work, work_share
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.outbox import STEPS
from suture_worker.folder import Outcome, TaskProgress

OPTIONS = {"refine_steps": 10, "refine_candidates": 2, "max_matches": 2, "alphas": [0.5]}


def divided_site(folder, make):
    """A site whose tasks are all divided."""
    config = load_site(make.write_site(folder, limits="divide_seconds = 0\n"))
    prepare_state(config)
    make.save_patches(config.datasets["patches"].path, n=6000)
    return config


@pytest.fixture
def site(tmp_path, make):
    return divided_site(tmp_path / "site", make)


def shares(folder):
    return {path.name: path for path in folder.shares.glob("*.*")}


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
    assert places(workers(site.state)) == 1
    with offering(site.state, 2):
        assert places(workers(site.state)) == 2
        with offering(site.state, 3):
            assert places(workers(site.state)) == 5
        with offering(site.state, 1000):
            assert places(workers(site.state)) == MAX_PLACES
    script = (
        "import sys, time; from pathlib import Path; from suture_worker.capacity import offering\n"
        "with offering(Path(sys.argv[1]), 4): print('here', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(site.state)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        assert places(workers(site.state)) == 4
        other.kill()
    assert places(workers(site.state)) == 1
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
