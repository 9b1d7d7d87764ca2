"""What is kept of work that lost its lease, and for how long."""

from __future__ import annotations

import os
import time

import pytest

from suture_worker.agent.resumable import Kept
from suture_worker.folder import Assignment, Outcome, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask


@pytest.fixture
def begin(make, tmp_path):
    def begin(number=0, fence=1, **spec):
        task = LeasedTask.parse({**make.leased("fit", fence=fence, **spec), "id": f"task_{number}"})
        folder = TaskFolder(tmp_path / "tasks", task.id)
        folder.create(Assignment(task=task, dataset="patches"))
        folder.note_terms(Terms(min_samples=11))
        return folder

    return begin


def write(folder, content="half"):
    folder.checkpoint.mkdir()
    (folder.checkpoint / "moments.safetensors").write_text(content)
    return folder


def read(folder):
    return (folder.checkpoint / "moments.safetensors").read_text() if folder.checkpoint.exists() else None


def test_the_next_lease_goes_on(begin, tmp_path):
    kept = Kept(tmp_path / "kept")
    first = write(begin())
    kept.put(first)
    kept.put(first)  # an agent that was killed in between does it again, with nothing there
    first.remove()
    assert not first.exists
    other = begin(1)
    kept.take(other)
    assert read(other) is None
    again = begin(fence=2)
    kept.take(again)
    assert read(again) == "half"
    assert list((tmp_path / "kept").iterdir()) == []


def test_what_is_kept_later_replaces_what_was_kept_before(begin, tmp_path):
    kept = Kept(tmp_path / "kept")
    kept.put(write(begin(), "old"))
    kept.put(write(begin(fence=2), "new"))
    last = begin(fence=3)
    kept.take(last)
    assert read(last) == "new"


def test_what_is_too_old_or_too_large_together_is_deleted_oldest_first(begin, tmp_path):
    places = tmp_path / "kept"
    kept = Kept(places, keep_seconds=1000, keep_bytes=250_000)
    for number in range(4):
        Kept(places).put(write(begin(number), "x" * 100_000))
        age = time.time() - (2000 if number == 3 else 100 - number)
        os.utime(places / f"task_{number}", (age, age))
    kept.prune()
    assert sorted(path.name for path in places.iterdir()) == ["task_1", "task_2"]


def test_links_a_child_made_are_not_followed(begin, tmp_path):
    kept = Kept(tmp_path / "kept", keep_seconds=-1)
    outside = tmp_path / "data"
    outside.mkdir()
    (outside / "patients.npz").write_text("x")
    folder = write(begin())
    (folder.checkpoint / "link").symlink_to(outside)
    kept.put(folder)
    assert not (tmp_path / "kept" / folder.id).exists()
    assert (outside / "patients.npz").exists()


@pytest.mark.parametrize(
    ("state", "options", "expected"), [("done", {}, True), ("done", {"seed": 1}, False), ("failed", {}, False)]
)
def test_results_are_sent_by_the_next_lease_if_it_asks_for_the_same(begin, tmp_path, state, options, expected):
    kept = Kept(tmp_path / "kept")
    first = write(begin())
    first.results.mkdir()
    (first.results / "document.json").write_text('{"n": 60}')
    first.finish(Outcome(state=state, code=None if state == "done" else "work.failed"))
    kept.put(first)
    again = begin(fence=2, options=options)
    kept.take(again)
    assert again.assignment.task.fence == 2
    assert read(again) == "half"
    assert (again.outcome is not None) == expected
    assert (again.results / "document.json").exists() == expected
