"""The worker's part with real models, data and child processes: results, confinement, and every way to end badly."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import machines
from tests.worker.children import children_of
from torch import nn

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.files import replacing
from suture_stitching.data.spool import naming_the_disk
from suture_stitching.fitting.fit import FitResult
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load
from suture_worker.compute import child
from suture_worker.compute.forkserver import NO_ROOM
from suture_worker.compute.work import crash_code, server, work
from suture_worker.config import StateConfig, TaskLimits, load_site, prepare_state
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, make, members, portable, quick):
    """The files of a real fit."""
    folder = tmp_path_factory.mktemp("fitted")
    config = load_site(make.write_site(folder))
    prepare_state(config)
    make.save_patches(config.datasets["patches"].path)
    task = LeasedTask.parse(make.leased("fit", members=members, options=quick))
    place = TaskFolder(config.state / "tasks", task.id)
    place.create(Assignment(task=task, dataset="patches"))
    place.note_terms(Terms(min_samples=11))
    for index, path in enumerate(portable):
        place.member(index).write_bytes(path.read_bytes())
    assert work(config, task.id) == "done", (place.path / "child.log").read_text()
    return place


@pytest.fixture
def candidate_files(fitted):
    return {name: (fitted.results / name).read_bytes() for name in ("candidates.json", "stitches.safetensors")}


def failures(site):
    path = site.state / "logs" / "failures.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def failed(site, folder, code):
    """The task failed with `code`, and its correlation id leads to the text."""
    outcome = folder.outcome
    assert (outcome.state, outcome.code) == ("failed", code), failures(site)
    (entry,) = [entry for entry in failures(site) if entry["correlation_id"] == outcome.correlation_id]
    assert (entry["task"], entry["code"]) == (folder.id, code)
    return entry["text"]


# What comes out


def test_a_fit(fitted):
    result = FitResult.load(fitted.results)
    assert [candidate.kind for candidate in result.candidates.candidates][:3] == ["single", "single", "ensemble"]
    assert any(candidate.kind == "stitched" for candidate in result.candidates.candidates)
    document = json.loads((fitted.results / "document.json").read_text())
    assert document == {"n": result.candidates.n}
    assert fitted.progress is not None
    assert fitted.outcome.state == "done"


def test_what_a_fit_wrote_may_leave(fitted, tmp_path):
    outbox = Outbox(tmp_path, min_samples=11)
    messages = outbox.result(fitted.assignment.task, fitted)
    outbox.close()
    assert [message.name for message in messages] == ["candidates.json", "stitches.safetensors", None]


def test_an_evaluation(site, data, assign, candidate_files, tmp_path):
    folder = assign("evaluate", files=candidate_files, own=1, metrics=["auroc", "calibration_curve"])
    assert work(site, folder.id) == "done", folder.log.read_text()
    evaluation = Evaluation.model_validate_json((folder.results / "document.json").read_bytes())
    assert evaluation.own == 1
    assert evaluation.splits["test"].n == 36
    assert evaluation.splits["test"].scores["c01"].difference.value == 0
    assert 0 <= evaluation.splits["test"].metrics["auroc"]["c01"].value <= 1
    outbox = Outbox(tmp_path, min_samples=11)
    (message,) = outbox.result(folder.assignment.task, folder)
    outbox.close()
    left = Evaluation.model_validate(json.loads(message.content)["document"]).splits["test"]
    assert left.metrics["auroc"].keys() == left.scores.keys()
    assert all(part.n >= 11 for curve in left.curves.values() for part in curve)


def test_a_composition_computes_what_was_evaluated(site, assign, candidate_files, make, tmp_path):
    names = [c.id for c in CandidateSet.model_validate_json(candidate_files["candidates.json"]).candidates]
    chosen = names[-1]

    def evaluation(own):
        document = make.evaluation(own, value=0.5)
        for split in document["splits"].values():
            base = split["scores"]["c00"]
            split["scores"] = {name: {**base, "difference": {"value": 0, "low": -0.1, "high": 0.1}} for name in names}
            split["scores"][chosen] = {"value": 0.9, "low": 0.8, "high": 0.95}
            split["scores"][chosen]["difference"] = {"value": 0.4, "low": 0.3, "high": 0.5}
        return document

    evaluations = {"north": evaluation(0), "south": evaluation(1)}
    folder = assign("compose", dataset=None, files=candidate_files, evaluations=evaluations)
    assert work(site, folder.id) == "done", folder.log.read_text()
    assert json.loads((folder.results / "document.json").read_text()) == {"chosen": chosen}
    images = torch.from_numpy(make.patches(8, 3)[0])
    output = load(folder.results / "model.safetensors")(images)
    assert output.shape == (8, 2)
    torch.testing.assert_close(output.sum(1), torch.ones(8))
    outbox = Outbox(tmp_path, min_samples=11)
    messages = outbox.result(folder.assignment.task, folder)
    outbox.close()
    assert [message.name for message in messages] == [
        "model.safetensors",
        "suture.json",
        "report.json",
        "README.md",
        None,
    ]


def test_a_task_is_done_once(site, fitted):
    written = (fitted.results / "document.json").stat().st_mtime_ns
    state = fitted.path.parent.parent
    assert work(site.model_copy(update={"site": StateConfig(state=state)}), fitted.id) == "it is done already"
    assert (fitted.results / "document.json").stat().st_mtime_ns == written


def test_a_message_for_a_dropped_task_does_nothing(site):
    assert work(site, "task_gone") == "there is no such task"


def test_a_task_another_worker_is_at_is_left_alone(site, data, assign, monkeypatch):
    monkeypatch.setattr("suture_worker.compute.work._LOCK_SECONDS", 0.2)
    folder = assign()
    with folder.locked():
        assert work(site, folder.id) == "another worker is at it"
    assert folder.outcome is None


# What does not work out


@pytest.mark.parametrize(("n", "kind"), [(30, "fit"), (30, "evaluate")])
def test_too_few_samples_are_declined(site, make, assign, candidate_files, n, kind):
    make.save_patches(site.datasets["patches"].path, n=n)
    folder = assign(kind, files=candidate_files if kind == "evaluate" else None)
    assert work(site, folder.id) == "declined"
    assert folder.outcome.code == "policy.too_few_samples"


def test_data_that_are_not_there(site, assign):
    folder = assign()
    assert work(site, folder.id) == "failed"
    assert str(site.datasets["patches"].path) in failed(site, folder, "dataset.missing_path")


def test_a_damaged_model(site, data, assign):
    folder = assign()
    content = folder.member(1).read_bytes()
    folder.member(1).write_bytes(content[:-8])
    work(site, folder.id)
    failed(site, folder, "model.truncated")


def test_a_dataset_this_worker_does_not_have(site, data, assign):
    folder = assign(dataset="unheard")
    work(site, folder.id)
    failed(site, folder, "dataset.unknown")


def test_too_little_memory(site, data, assign, quick, tmp_path, make):
    """A model that makes 1.7 GB of a batch of these small images, where a task may use 1."""
    channels = 200_000
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
    export(nn.Sequential(nn.Conv2d(1, channels, 1), *pooled).eval(), torch.rand(2, 1, 6, 6), tmp_path / "large")
    folder = assign(options=quick)
    folder.member(1).write_bytes((tmp_path / "large").read_bytes())
    work(site.model_copy(update={"limits": TaskLimits(threads=1, memory_gib=1)}), folder.id)
    failed(site, folder, "work.out_of_memory")


def test_too_little_time(site, data, assign, long):
    folder = assign(options=long)
    work(site.model_copy(update={"limits": TaskLimits(threads=1, seconds=2)}), folder.id)
    failed(site, folder, "work.time_limit")


def test_a_disk_that_fills_ends_no_task_for_good(site, data, assign, candidate_files, quick, tmp_path):
    """At whichever write: then there is room again, and the task is done."""
    tasks = (assign(options=quick), assign("evaluate", files=candidate_files, own=1))
    prepared = [shutil.copytree(task.path, tmp_path / "prepared" / task.id) for task in tasks]
    command = [sys.executable, "-m", "tests.worker.full_disk", str(site.path), *map(str, prepared)]
    ran = machines.run(machines.small_disk(site.state, 8192, command), folder=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    for every in json.loads(ran.stdout.splitlines()[-1]):
        *full, last = every
        assert last["said"] == "done"
        assert len(full) > 3
        for ended in full:
            assert ended["said"] == "no room" or (ended["code"] == "site.disk_full" and ended["retryable"]), ended
            assert ended["unfinished"] == []
            assert ended["again"] == "done"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space")


def test_no_room_for_data_or_results_is_told_as_that_and_tried_again(tmp_path):
    def unpacks():
        with naming_the_disk():
            full_disk()

    def writes():
        with replacing(tmp_path / "results"):
            full_disk()

    for work_of_a_child in (full_disk, unpacks, writes):
        outcome = child._outcome(work_of_a_child)
        assert (outcome.state, outcome.code, outcome.retryable) == ("failed", "site.disk_full", True)
    assert list(tmp_path.iterdir()) == []


def computes(folder: TaskFolder) -> bool:
    return folder.progress is not None and folder.progress.step != "load"


def child_of(folder: TaskFolder, seconds: float = 120.0) -> int:
    """The id of the process that works on the folder, once it computes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if computes(folder) and (found := children_of(folder)):
            return found[""].pid
        time.sleep(0.05)
    raise AssertionError("no child")


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block, which is the worker's own thread: its server of children stays with it."""
    with ThreadPoolExecutor(1) as other:
        acting = other.submit(act)
        yield
    acting.result()


def test_a_child_that_is_killed(site, data, assign, long):
    folder = assign(options=long)
    with meanwhile(lambda: os.kill(child_of(folder), signal.SIGKILL)):
        work(site, folder.id)
    assert "SIGKILL" in failed(site, folder, "work.interrupted")
    assert folder.outcome.retryable


def test_a_run_goes_on_where_the_last_one_was(site, data, assign):
    folder = assign()
    assert work(site, folder.id) == "done"
    results = {name: (folder.results / name).read_bytes() for name in ("candidates.json", "stitches.safetensors")}
    refined = sorted(folder.checkpoint.glob("refined-*"))
    assert refined
    before = [path.stat().st_mtime_ns for path in refined]
    (folder.path / "outcome.json").unlink()  # as if the worker had died before it could write it
    assert work(site, folder.id) == "done"
    assert [path.stat().st_mtime_ns for path in refined] == before
    assert {name: (folder.results / name).read_bytes() for name in results} == results


def test_a_child_that_does_not_listen_is_killed(site, data, assign, monkeypatch, long):
    monkeypatch.setattr("suture_worker.compute.work.GRACE_SECONDS", 1.0)
    folder = assign(options=long)
    stopped = []

    def stop_listening():
        stopped.append(child_of(folder))
        os.kill(stopped[0], signal.SIGSTOP)
        folder.cancel()

    with meanwhile(stop_listening):
        work(site, folder.id)
    assert folder.outcome.state == "cancelled"
    assert not Path(f"/proc/{stopped[0]}").exists()


def test_what_was_interrupted_too_often_is_given_up(site, data, assign):
    folder = assign()
    (folder.path / "runs").write_text("3")
    work(site, folder.id)
    failed(site, folder, "work.interrupted")
    assert folder.outcome.retryable


# Confinement


def test_the_child_s_surroundings_and_its_end_when_cancelled(site, data, assign, monkeypatch, long):
    for name in ("SUTURE_TOKEN", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret-0042")
    monkeypatch.setattr("suture_worker.compute.work.GRACE_SECONDS", 1000.0)  # longer than a test may take
    server.stop()  # it had the environment of before
    folder = assign(options=long)
    seen: dict[str, Any] = {}

    def look():
        process = Path(f"/proc/{child_of(folder)}")
        seen["environment"] = (process / "environ").read_bytes()
        seen["status"] = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        seen["limits"] = (process / "limits").read_text()
        seen["opened"] = [str(path.readlink()) for path in (process / "fd").iterdir()]
        folder.cancel()  # it is asked, and need not be killed

    with meanwhile(look):
        work(site, folder.id)
    assert folder.outcome.state == "cancelled"
    assert b"secret-0042" not in seen["environment"]
    assert b"suture_t_1" not in seen["environment"]
    assert f"HOME={site.state}".encode() in seen["environment"].split(b"\0")
    assert seen["status"]["Seccomp"].strip() == "2"
    assert seen["status"]["NoNewPrivs"].strip() == "1"
    assert re.search(r"^Max core file size +0 +0 ", seen["limits"], re.MULTILINE)
    assert not [place for place in seen["opened"] if place.startswith("socket:")]
    assert "the child" not in folder.log.read_text(), "this kernel could confine it"


@pytest.mark.parametrize(
    ("status", "printed", "starved", "code"),
    [
        (-signal.SIGSEGV, "", False, "model.crashed"),
        (-signal.SIGABRT, "", False, "model.crashed"),
        (
            -signal.SIGABRT,
            "terminate called after throwing an instance of 'std::bad_alloc'",
            False,
            "work.out_of_memory",
        ),
        (-signal.SIGKILL, "", True, "work.out_of_memory"),
        (-signal.SIGKILL, "", False, "work.interrupted"),
        (-signal.SIGXCPU, "", False, "work.time_limit"),
        (1, "MemoryError", False, "work.out_of_memory"),
        (1, "Traceback", False, "work.failed"),
        (0, "", False, "work.failed"),
        (NO_ROOM, "", False, "site.disk_full"),
    ],
)
def test_crash_codes(status, printed, starved, code):
    assert crash_code(status, printed, starved=starved) == code
