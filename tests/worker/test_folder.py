"""A task's folder: what agent, worker and child tell each other survives any of them being killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from suture_contract.errors import SutureError
from suture_worker.folder import Assignment, Outcome, Run, TaskFolder, TaskProgress, unfinished
from suture_worker.leased_task import LeasedTask

RUN = Run(device="cpu", threads=1, memory_bytes=1, cpu_seconds=1, min_samples=11, dataset=None)


@pytest.fixture
def folder(site, make):
    folder = TaskFolder(site.state / "tasks", "task_fit")
    folder.create(Assignment(task=LeasedTask.parse(make.leased("fit")), dataset="patches"))
    return folder


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "x" * 65, "-x", "a\n"])
def test_an_id_from_a_broker_never_leads_elsewhere(site, name):
    with pytest.raises(SutureError) as caught:
        TaskFolder(site.state / "tasks", name)
    assert caught.value.code == "task.invalid"


def test_the_assignment_is_read_back(folder, make):
    assert folder.exists
    assert folder.assignment == Assignment(task=LeasedTask.parse(make.leased("fit")), dataset="patches")


def test_a_new_lease_begins_anew(folder, make):
    folder.begin_run(RUN)
    folder.finish(Outcome(state="failed", code="work.failed"))
    folder.cancel()
    folder.create(Assignment(task=LeasedTask.parse(make.leased("fit", fence=2)), dataset="patches"))
    assert folder.outcome is None
    assert not folder.cancelled
    assert folder.assignment.task.fence == 2
    assert folder.begin_run(RUN) == 1


def test_an_outcome_is_written_once(folder):
    folder.finish(Outcome(state="done"))
    folder.finish(Outcome(state="failed", code="work.failed"))
    assert folder.outcome == Outcome(state="done")


def test_a_run_counts_and_clears_what_the_last_one_left(folder):
    assert folder.begin_run(RUN) == 1
    (folder.results / "candidates.json").write_text("half")
    assert folder.begin_run(RUN) == 2
    assert list(folder.results.iterdir()) == []
    assert folder.run == RUN


def test_a_checkpoint_outlives_a_run_but_not_a_lease(folder, make):
    folder.begin_run(RUN)
    (folder.checkpoint / "part.safetensors").write_text("kept")
    folder.begin_run(RUN)
    assert (folder.checkpoint / "part.safetensors").read_text() == "kept"
    folder.create(Assignment(task=LeasedTask.parse(make.leased("fit", fence=2)), dataset="patches"))
    folder.begin_run(RUN)
    assert list(folder.checkpoint.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step":1}', '{"step":"x","done":-1,"total":1}', "x" * 100_000])
def test_what_a_child_writes_may_be_anything(folder, content):
    folder.begin_run(RUN)
    (folder.results / "progress.json").write_text(content)
    (folder.results / "ending.json").write_text(content)
    assert folder.progress is None
    assert folder.child_outcome is None


def test_a_child_s_link_is_not_followed(folder, tmp_path):
    folder.begin_run(RUN)
    (tmp_path / "x.json").write_text('{"state":"done"}')
    (folder.results / "ending.json").symlink_to(tmp_path / "x.json")
    assert folder.child_outcome is None


def test_progress_and_ending_are_read_back(folder):
    folder.begin_run(RUN)
    folder.write_progress(TaskProgress(step="moments", done=1, total=2, seconds_left=3.5))
    folder.write_child_outcome(Outcome(state="failed", code="model.truncated"))
    assert folder.progress == TaskProgress(step="moments", done=1, total=2, seconds_left=3.5)
    assert folder.child_outcome == Outcome(state="failed", code="model.truncated")


def test_one_worker_at_a_time(folder):
    with folder.locked() as mine, folder.locked() as other:
        assert (mine, other) == (True, False)
        assert folder.busy
    assert not folder.busy


def test_the_kernel_frees_the_lock_of_a_killed_worker(folder):
    hold = (
        "import sys, time; from pathlib import Path; from suture_worker.folder import TaskFolder\n"
        "with TaskFolder(Path(sys.argv[1]), sys.argv[2]).locked() as mine:\n"
        "    print(mine, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", hold, str(folder.path.parent), folder.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert folder.busy
        holder.kill()
        holder.wait()
        assert not folder.busy


def test_unfinished_work_is_found_and_remains_are_removed(folder, site):
    tasks = site.state / "tasks"
    (tasks / "task_half" / "members").mkdir(parents=True)
    assert [found.id for found in unfinished(tasks)] == ["task_fit"]
    assert not (tasks / "task_half").exists()
    folder.remove()
    assert unfinished(tasks) == []


def test_a_damaged_task_is_told(folder):
    (folder.path / "task.json").write_text("{")
    with pytest.raises(SutureError, match="damaged"):
        _ = folder.assignment
