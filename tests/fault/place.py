"""A hub and a site as real processes that can be killed, and what must hold after a job, whatever happened to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import redis
from tests.fault.relay import Relay

from suture.bundle import export_model
from suture.errors import HubError
from suture.http import Connection
from suture.hub import Hub
from suture.job import Job
from suture_contract.files import write_text
from suture_local.ports import free_port
from suture_service import operate
from suture_service.settings import Settings
from suture_worker import broker
from suture_worker.capacity import places, workers
from suture_worker.compute.celery_app import make_app, ring
from suture_worker.compute.forkserver import NAME
from suture_worker.config import load_site
from suture_worker.egress.log import verify
from suture_worker.folder import TaskFolder

LEASE_SECONDS = 12
DISK_BYTES = 160 * 2**20
#: A fit with all of its steps that is soon done: it is stopped from outside where something is to happen.
OPTIONS: dict[str, Any] = {"alphas": [0.5], "max_matches": 2, "refine_candidates": 2, "refine_steps": 60}
SAMPLES = 3000
LABELS = ["dark", "bright"]
MODELS = ("north/plain", "north/wide")
#: What a hub is started with: its machine's clock is wrong by so many seconds.
_HUB = """
import sys
from datetime import timedelta
from suture_service import hub
from suture_service.main import serve
from suture_service.settings import Settings

seconds = float(sys.argv[2])
right = hub.utc_now
hub.utc_now = lambda: right() + timedelta(seconds=seconds)
serve(Settings(), port=int(sys.argv[1]))
"""
_SITE = """\
[hub]
url = "{url}"
token_file = "token"

[site]
state = "{state}"
device = "cpu"
party = "north"

[limits]
threads = 1
divide_seconds = {divide}

[datasets.patches]
path = "{data}"
format = "npz"
labels = {labels}
value_range = [0.0, 1.0]

[policy]
min_samples = 11

[[policy.allow]]
parties = ["north"]
actions = ["fit", "evaluate"]
datasets = ["patches"]
members_from = ["north"]
evaluations_per_month = 1000
"""


class Server(Protocol):
    """A PostgreSQL that can be killed and started again."""

    def empty(self) -> str: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a job ended: its state, and what it published."""

    state: str
    code: str | None
    model: str | None
    report: Any


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0, pause: float = 0.02) -> Any:
    """Return what `condition` says as soon as it says something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return found


def _patches(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 6, 6) that are mostly dark or mostly bright, and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = np.clip(rng.normal(0.35 + 0.3 * labels[:, None, None, None], 0.25, (n, 1, 6, 6)), 0, 1)
    return images.astype(np.float32), labels.astype(np.int64)


def make_models(folder: Path) -> dict[str, Path]:
    """Two small portable models of different design, each trained a little."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    designs = {
        "plain": nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 2)
        ),
        "wide": nn.Sequential(
            nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)
        ),
    }
    made = {}
    for seed, (name, module) in enumerate(designs.items()):
        images, labels = map(torch.from_numpy, _patches(60, 10 + seed))
        optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(20):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimiser.step()
        made[name] = folder / name
        made[name].mkdir()
        target = made[name] / "model.safetensors"
        metadata = export_model(
            module.eval(), images[:2], target, labels=LABELS, license="CC0-1.0", value_range=(0.0, 1.0)
        )
        (made[name] / "suture.json").write_text(metadata.to_json())
    return made


class Place:
    """One hub and one site of `north`, with a relay in between.

    With two workers, the second is a process of its own, as on a machine beside, and every task is divided.
    """

    def __init__(
        self,
        root: Path,
        models: dict[str, Path],
        postgres: Server | None = None,
        *,
        small_disk: bool = False,
        two_workers: bool = False,
    ) -> None:
        self.root = root
        self._mounted = False
        self.two_workers = two_workers
        self.postgres = postgres
        url = postgres.empty() if postgres is not None else f"sqlite:///{root / 'hub.db'}"
        self.settings = Settings(database_url=url, store=str(root / "store"))
        self.port = free_port()
        self.relay = Relay(self.port)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: dict[str, int] = {}
        operate.migrate(self.settings)
        operate.add_party(self.settings, "north")
        token = operate.create_token(self.settings, "north", ["publisher", "requester"])[1]
        self.start_hub()
        self.hub = Hub(f"http://127.0.0.1:{self.port}", token)
        for repo, folder in zip(MODELS, models.values(), strict=True):
            self.hub.publish_file(folder, repo, visibility="all", show=lambda _parcel: None)
        self.state = root / "site" / "state"
        images, labels = _patches(SAMPLES, 0)
        np.savez(root / "patches.npz", images=images, labels=labels)
        self._write_site()
        if small_disk:
            self._mount()
        self.config = load_site(root / "site" / "site.toml")
        self.start_site()

    def _write_site(self) -> None:
        folder = self.root / "site"
        folder.mkdir()
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(operate.add_site(self.settings, "north", "main"))
        self._write_rules()

    def _write_rules(self) -> None:
        data, labels = self.root / "patches.npz", json.dumps(LABELS)
        divide = 0 if self.two_workers else 3600
        text = _SITE.format(url=self.relay.url, state=self.state, data=data, labels=labels, divide=divide)
        write_text(self.root / "site" / "site.toml", text)

    def use_two_workers(self) -> None:
        """Have every task divided from now on, by two workers, though the site runs."""
        self.two_workers = True
        self._write_rules()

    def _mount(self) -> None:
        """Give the site's state a disk of its own, as the superuser may."""
        self.state.mkdir(mode=0o700)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(self.state)], check=True
        )
        self._mounted = True

    def fill_disk(self, seconds: float) -> None:
        """Leave not a byte of the site's disk free for so long."""
        filler = self.state / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        time.sleep(seconds)
        filler.unlink()

    def close(self) -> None:
        """End everything."""
        for name in ("second", "site", "hub"):
            process = self.processes.pop(name, None)
            if process is not None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.relay.close()
        self.hub.connection.close()
        if self._mounted:
            subprocess.run(["umount", str(self.state)], check=True)

    # Processes

    def _start(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SUTURE_")}
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**kept, **(environment or {})},
                start_new_session=True,
            )

    def start_hub(self, *, wrong_by: float = 0.0) -> None:
        """Start the hub on its port and wait until it answers."""
        environment = {
            "SUTURE_HUB_DATABASE_URL": self.settings.database_url,
            "SUTURE_HUB_STORE": self.settings.store,
            "SUTURE_HUB_LEASE_SECONDS": str(LEASE_SECONDS),
            "SUTURE_HUB_SWEEP_SECONDS": "0.5",
        }
        self._start("hub", [sys.executable, "-c", _HUB, str(self.port), str(wrong_by)], environment)
        with Connection(f"http://127.0.0.1:{self.port}", attempts=1, timeout=5) as probe:
            until(lambda: _answers(probe), "the hub answers", 180, 0.1)

    def start_site(self) -> None:
        """Start agent, worker and Redis as an operator does."""
        self._start("site", [sys.executable, "-m", "suture", "site", "run", str(self.config.path)])
        if self.two_workers:
            self.start_second()

    def start_second(self) -> None:
        """Start the second worker unless it runs, and wait until the site has both."""
        if "second" not in self.processes or self.processes["second"].poll() is not None:
            self._start("second", [sys.executable, "-m", "suture", "site", "worker", str(self.config.path)])
        until(lambda: places(workers(self.state)) == 2, "two workers", 180)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End the hub or the whole site."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(120)

    def find(self, name: str) -> list[psutil.Process]:
        """The site's processes of this name: agent, worker, child, redis."""
        found = []
        started = [self.processes[part] for part in ("site", "second") if part in self.processes]
        running = [psutil.Process(process.pid) for process in started if process.poll() is None]
        for process in [one for first in running for one in (first, *first.children(recursive=True))]:
            try:
                told, named = " ".join(process.cmdline()), process.name()
            except psutil.Error:
                continue
            is_it = {
                "agent": "suture_worker agent" in told,
                "worker": "suture_worker worker" in told or "suture site worker" in told,
                "child": named == NAME,
                "redis": "-server unixsocket" in told,
            }[name]
            if is_it:
                found.append(process)
        if name == "worker":  # its pool has the same words, and goes with it
            pids = {process.pid for process in found}
            found = [process for process in found if process.ppid() not in pids]
        return found

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash is; the hub and PostgreSQL are started again as an init system does."""
        if name == "hub":
            self.stop("hub", signal.SIGKILL)
            self.start_hub()
        elif name == "postgresql":
            assert self.postgres is not None
            self.postgres.kill()
            time.sleep(1.0)
            self.postgres.start()
        else:
            processes = until(lambda: self.find(name), f"a process {name}")
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=60)

    # Jobs

    def ask(self, name: str) -> Job:
        """Ask for a stitch of the two models; the site's cache is empty."""
        for path in (self.state / "cache").glob("*"):
            path.unlink()
        self._seen = {}
        return self.hub.stitch(list(MODELS), "patches", publish_as=name, **OPTIONS)

    def folder(self, job: Job, kind: str) -> TaskFolder | None:
        """The folder of the job's present task of this kind, once it is there."""
        for path in (self.state / "tasks").glob("*/task.json"):
            try:
                task = json.loads(path.read_bytes())["task"]
            except (OSError, ValueError):
                continue
            if (task["job"]["id"], task["kind"]) == (job.id, kind):
                return TaskFolder(self.state / "tasks", task["id"])
        return None

    def wait(self, job: Job, seconds: float = 240.0) -> str:
        """Wait for the end of the job, looking past a hub that is away."""

        def ended() -> str | None:
            try:
                status = job.refresh()
            except HubError:
                return None
            return status.state if status.ended else None

        return until(ended, f"{job.id} ends", seconds, 0.3)

    def outcome(self, job: Job, name: str) -> Ended:
        """What a job that has ended left: everything that must hold is checked here."""
        status = job.refresh()
        self.check_order(job, name)
        code = status.error.code if status.error is not None else None
        if status.result is None:
            return Ended(status.state, code, None, None)
        revision = self.hub.revision(f"north/{name}", status.result.revision)
        report = json.loads(self.hub.report(f"north/{name}").model_dump_json(by_alias=True))
        report["lineage"].pop("job", None)
        return Ended(status.state, code, revision.model_file.sha256, report)

    def check_order(self, job: Job, name: str) -> None:
        """At most one revision; no task ended twice; every temporary file is gone; what left is in the log."""
        tasks = self.state / "tasks"
        until(lambda: not any(tasks.iterdir()), "the site lets go of the task", 60)
        found = [model.id for model in self.hub.models() if model.id == f"north/{name}"]
        revisions = list(self.hub.connection.pages(f"/v1/models/north/{name}/revisions")) if found else []
        assert len(revisions) == (1 if job.status.result is not None else 0), revisions
        ends: dict[str, int] = {}
        for log in sorted((self.state / "logs").glob("worker.log*")):
            for line in log.read_text(errors="replace").splitlines():
                if '"task ended"' in line and '"done"' in line:
                    task = json.loads(line[line.index("{") :])["task"]
                    ends[task] = ends.get(task, 0) + 1
        twice = {task.id for task in job.status.tasks if ends.get(task.id, 0) > 1}
        assert not twice, f"ran twice to the end: {twice}"
        kept = self.state / "kept"
        if job.status.state in ("complete", "cancelled") and kept.exists():
            assert not {task.id for task in job.status.tasks} & {path.name for path in kept.iterdir()}
        left = [path for path in self.state.rglob("*") if path.suffix == ".part"]
        assert not left, left
        store = until(lambda: not _temporary(Path(self.settings.store)), "no upload is left in the store", 10)
        assert store
        assert not self.find("child")
        verify(self.state / "outbox" / "egress.jsonl")

    # Redis

    def ring(self, task_id: str) -> None:
        """Deliver the message of a task once more."""
        ring(make_app(self.config), task_id)

    def flush_redis(self) -> None:
        """Lose all that Redis holds, once it is there: it may be about to start again."""

        def flushed() -> bool:
            with broker.connect(self.config) as client:
                try:
                    for key in client.scan_iter():
                        client.delete(key)
                    return True
                except redis.RedisError:
                    return False

        until(flushed, "Redis answers")


def _answers(hub: Connection) -> bool:
    try:
        hub.get("/readyz")
    except HubError:
        return False
    return True


def _temporary(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file() and "tmp" in path.relative_to(store).parts[0]]


@contextmanager
def place_in(
    root: Path,
    models: dict[str, Path],
    postgres: Server | None = None,
    *,
    small_disk: bool = False,
    two_workers: bool = False,
) -> Iterator[Place]:
    """A place that is closed and removed afterwards."""
    place = Place(root, models, postgres, small_disk=small_disk, two_workers=two_workers)
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(root, ignore_errors=True)
