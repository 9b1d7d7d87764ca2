"""One device for each process of the worker: which, how many, and again the same after one of them was killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil
import pytest
from tests.until import until
from tests.worker.children import children_of

from suture_worker import broker, device
from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import make_app, ring
from suture_worker.leased_task import LeasedTask

#: The site's worker on a machine with more devices, of which it was given these.
WORKER = """
import sys
from suture_worker.compute import celery_app
from suture_worker.config import load_site
celery_app.shares = lambda wanted: ["5", "GPU-6"]
celery_app.serve(load_site(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("wanted", "visible", "count", "expected"),
    [
        ("auto", None, 0, [None]),
        ("auto", None, 3, ["0", "1", "2"]),
        ("cuda", "4, 6", 2, ["4", "6"]),
        ("auto", "GPU-a,GPU-b,7", 2, ["GPU-a", "GPU-b"]),  # what torch does not find is not given out
        ("auto", "", 0, [None]),
        ("cuda:1", None, 3, [None]),
        ("cpu", None, 3, [None]),
    ],
)
def test_who_gets_which_device(monkeypatch, wanted, visible, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(device, "cuda_devices", lambda: ["a GPU"] * count)
    assert device.shares(wanted) == expected


@pytest.fixture
def worker(site, data):
    """The processes of a worker with two devices."""
    environment = {**os.environ, "REMAP_SIGTERM": "SIGQUIT"}
    with (site.state / "logs" / "all.log").open("wb") as log:
        redis = subprocess.Popen(broker.redis_command(site), stdout=log, stderr=log)
        until(lambda: broker.socket_path(site).exists())
        command = [sys.executable, "-c", WORKER, str(site.path)]
        started = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    yield psutil.Process(started.pid)
    for process in (started, redis):
        process.terminate()
        process.wait(120)


def test_each_process_has_its_own_and_keeps_it(site, worker, assign, long, make, members):
    folders = []
    for number in range(2):
        folder = assign(options=long)
        task = {**make.leased("fit", members=members, options=long), "id": f"task_{number}"}
        moved = type(folder)(folder.path.parent, task["id"])
        folder.path.rename(moved.path)
        assert LeasedTask.parse(task).id == moved.id
        folders.append(moved)
    for folder in folders:
        ring(make_app(site), folder.id)

    def at_work():
        """The worker's processes and the device of each, once both are at a task: which does which is no promise."""
        if not all(folder.log.exists() for folder in folders):  # a child's first act, sooner looked for than a process
            return None
        found = {}
        for folder in folders:
            for child in children_of(folder).values():
                with contextlib.suppress(psutil.Error):
                    for process in {*child.parents()} & {*worker.children()}:
                        found[process] = child.environ().get("CUDA_VISIBLE_DEVICES")
        return found if len(found) == 2 else None

    first = until(at_work)
    assert sorted(first.values()) == ["5", "GPU-6"]
    assert places(workers(site.state)) == 2
    killed = next(process for process, device in first.items() if device == "5")
    killed.kill()

    def replaced():
        now = at_work()
        return now if now and killed not in now else None

    again = until(replaced)
    (new,) = again.keys() - first.keys()
    assert again == {new: "5", **{process: device for process, device in first.items() if process != killed}}
    for folder in folders:
        folder.cancel()
    for folder in folders:
        assert until(lambda folder=folder: folder.outcome).state == "cancelled"
