"""What a model could do if it broke out of its graph: it costs its own task, and the site goes on with the next.

The worker of one site starts its children with an attack in the place of a model's operators; all else is as always:
hub, agent, Redis, Celery, and a child that has given up what it does not need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from suture.bundle import export_model
from suture.hub import Hub
from suture.job import JobStatus  # type: ignore[attr-defined]
from suture_contract.errors import SutureError
from suture_contract.files import write_text
from suture_local.installation import Installation
from suture_worker import broker
from suture_worker.compute import confine, forkserver
from suture_worker.config import load_site

pytestmark = [
    pytest.mark.flow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's"),
]
LABELS = ["dark", "bright"]
QUICK: dict[str, Any] = {"alphas": [0.5], "max_matches": 1, "refine_candidates": 1, "refine_steps": 5}
WAIT = 500
#: What a task may take: more on a machine that has much to do. An attack that loops takes all that it may.
TASK_SECONDS = int(8 + min(60, 6 * os.getloadavg()[0] / (os.cpu_count() or 1)))
LOOP_SECONDS = 4

#: Of Landlock, the first that keeps signals within; and what Python and torch set for themselves.
SIGNALS = 6
OF_LIBRARIES = {"LC_CTYPE", "TORCHINDUCTOR_CACHE_DIR"}

#: The site, with a worker that starts other children.
SITE = """
import sys
from pathlib import Path
from suture_worker import run
from suture_worker.config import load_site

usual, worker = run._command, Path(sys.argv[2]).read_text()
run._command = lambda name, config: (
    [sys.executable, "-c", worker, *usual(name, config)[3:], *sys.argv[3:]] if name == "worker" else usual(name, config)
)
run.run_site(load_site(sys.argv[1]))
"""
WORKER = """
import subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from suture_worker import run
from suture_worker.compute import forkserver

def start(command, **options):
    at = command.index("-m")
    return subprocess.Popen([*command[:at], "-c", attack, *command[at + 2 :], *known], **options)

attack, known = Path(sys.argv[4]).read_text(), sys.argv[5:]
forkserver.subprocess = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)
run.main(sys.argv[1:4])
"""
#: The second model of a job says by its name what its operators do.
CHILD = """
import ctypes, json, os, resource, signal, socket, sys
from pathlib import Path
from suture_worker.compute import child, forkserver

def allocates():
    kept = []
    while True:
        kept.append(bytearray(2**26))

def loops():
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass

def crashes():
    ctypes.string_at(0)

def lies():
    (folder.results / "document.json").write_text(json.dumps({"n": 160, "note": "patient 7"}))
    (folder.results / "ending.json").write_text(json.dumps({"state": "done"}))
    os._exit(0)

def agent():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(bytes(1))
        except OSError:
            continue
        if b"agent" in words and os.fsencode(site / "site.toml") in words:
            return int(path.parent.name)
    raise LookupError("there is no agent")

def connect(family, address):
    with socket.socket(family) as one:
        one.settimeout(2)
        one.connect(address)

def talk(words):
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(20)
        one.connect(redis)
        one.sendall(words.encode() + bytes([13, 10]))
        # Redis 7 and Valkey refuse code to everybody, before they ask who it is.
        if one.recv(64).startswith((b"-NOAUTH", b"-ERR MODULE command not allowed")):
            raise PermissionError("does not talk to us")

def share_memory():
    if ctypes.CDLL(None).shmget(0, 4096, 0o1600) < 0:
        raise PermissionError("no memory")

def be_elsewhere():
    if ctypes.CDLL(None).unshare(0x10000000) < 0:
        raise PermissionError("no namespace")

def start():
    if os.fork() == 0:
        os.setsid()
        os._exit(0)

def more_memory():
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard + 2**30, hard + 2**30))

def looks():
    state, data = site / "state", folder.run.dataset.path
    log = state / "outbox" / "egress.jsonl"
    server, talks = os.getppid(), agent()
    worker = int(Path(f"/proc/{server}/stat").read_text().split()[3])
    tries = {
        "reach the hub": lambda: connect(socket.AF_INET, ("127.0.0.1", int(port))),
        "reach it by IPv6": lambda: connect(socket.AF_INET6, ("::1", int(port))),
        "reach Redis": lambda: talk("PING"),
        "load code into Redis": lambda: talk("MODULE LOAD /x.so"),
        "read the queue": lambda: talk("LRANGE suture 0 -1"),
        "read Redis's password": lambda: (state / "redis" / "password").read_text(),
        "start a process": start,
        "share memory": share_memory,
        "have other namespaces": be_elsewhere,
        "make a socket": lambda: socket.socketpair(),
        "have more memory": more_memory,
        "be another user": lambda: os.setuid(os.getuid() + 1),
        "read the token": lambda: (site / "token").read_text(),
        "read the configuration": lambda: (site / "site.toml").read_text(),
        "read what left": lambda: log.read_bytes(),
        "write into what left": lambda: log.open("ab"),
        "list the tasks": lambda: list((state / "tasks").iterdir()),
        "read other data": lambda: (data.parent / "other.npz").read_bytes(),
        "list the data": lambda: list(data.parent.iterdir()),
        "change the data": lambda: data.open("r+b"),
        "truncate the data": lambda: os.truncate(data, 0),
        "remove the data": lambda: data.unlink(),
        "rename the data": lambda: data.rename(data.with_name("gone.npz")),
        "add to the data": lambda: data.with_name("new.npz").write_bytes(b""),
        "change its task": lambda: (folder.path / "task.json").write_text("{}"),
        "say how its task ended": lambda: (folder.path / "outcome.json").write_text("{}"),
        "change its model": lambda: folder.member(0).open("r+b"),
        "write elsewhere": lambda: Path("/var/tmp/attack").write_text(""),
        "see its server's environment": lambda: Path(f"/proc/{server}/environ").read_bytes(),
        "see its server's memory": lambda: Path(f"/proc/{server}/mem").open("rb"),
        "see its worker's environment": lambda: Path(f"/proc/{worker}/environ").read_bytes(),
        "see its worker's memory": lambda: Path(f"/proc/{worker}/mem").open("rb"),
        "see the agent's environment": lambda: Path(f"/proc/{talks}/environ").read_bytes(),
        "see the agent's memory": lambda: Path(f"/proc/{talks}/mem").open("rb"),
        "signal its server": lambda: os.kill(server, 0),
        "signal its worker": lambda: os.kill(worker, 0),
        "signal the agent": lambda: os.kill(talks, 0),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except (OSError, ValueError) as error:
            said[name] = type(error).__name__
        else:
            said[name] = "could"
    said["threads that are not confined"] = [
        path.parent.name for path in Path("/proc/self/task").glob("*/status")
        if not {"Seccomp:\\t2", "NoNewPrivs:\\t1"} <= set(path.read_text().splitlines())
    ]
    opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    said["open"] = sorted({*opened} - {"/dev/null", str(folder.log), str(data)})
    said["environment"] = sorted(os.environ)
    said["data are there"] = data.read_bytes()[:2] == b"PK"
    print("SAID", json.dumps(said), flush=True)
    raise RuntimeError("seen enough")

def load(task, place, run, dataset):
    global folder
    members, folder = honest(task, place, run, dataset), place
    attack = globals().get(task.spec.members[1].repo.partition("/")[2].removesuffix("-on-a-gpu"))
    if attack is not None:
        from suture_stitching.portable.runtime import PortableModel
        PortableModel._run = lambda *_: attack()
    return members

def give_up(place, run):
    # What one that computes on a GPU keeps; there need be none for it.
    gpu = place.assignment.task.spec.members[1].repo.endswith("-on-a-gpu")
    usual(place, run.model_copy(update={"device": "cuda:0"}) if gpu else run)

site, port, redis = Path(sys.argv[-3]), *sys.argv[-2:]
honest, child._load = child._load, load
usual, child.give_up = child.give_up, give_up
forkserver.main(sys.argv[1:-3])
"""
ATTACKS = {
    "looks": "work.failed",
    "looks-on-a-gpu": "work.failed",
    "allocates": "work.out_of_memory",
    "crashes": "model.crashed",
    "lies": "outbox.refused",
    "loops": "work.time_limit",
}


def _data(path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    images = np.clip(rng.normal(0.35 + 0.3 * labels[:, None, None, None], 0.25, (160, 1, 6, 6)), 0, 1)
    np.savez(path, images=images.astype(np.float32), labels=labels)
    return path


def _publish(hub: Hub, folder: Path) -> None:
    torch.manual_seed(0)
    for width, names in ((6, ["honest"]), (8, ["other", *ATTACKS])):
        module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, width), nn.ReLU())
        module.append(nn.Linear(width, 2))
        path = folder / names[0]
        path.mkdir()
        metadata = export_model(
            module.eval(),
            torch.rand(2, 1, 6, 6),
            path / "model.safetensors",
            labels=LABELS,
            license="CC0-1.0",
            value_range=(0.0, 1.0),
        )
        (path / "suture.json").write_text(metadata.to_json())
        for name in names:
            hub.publish_file(path, f"north/{name}", visibility="all", show=lambda _parcel: None)


@dataclass(frozen=True)
class Played:
    """How the jobs ended, and the worker's processes before and after."""

    site: Path
    data: Path
    content: bytes
    jobs: dict[str, JobStatus]
    before: set[int]
    after: set[int]
    children: list[str]

    def failure(self, name: str) -> dict[str, Any]:
        tasks = {task.id for task in self.jobs[name].tasks}
        lines = (self.site / "state" / "logs" / "failures.log").read_text().splitlines()
        (entry,) = [entry for entry in map(json.loads, lines) if entry["task"] in tasks]
        return dict(entry)


def _parts(site: psutil.Process) -> set[int]:
    """The worker with its pool, the agent and Redis."""
    return {
        process.pid for process in site.children(recursive=True) if "forkserver.main" not in " ".join(process.cmdline())
    }


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """One site, each attack once, and an honest job after them."""
    root, data = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("data")
    with Installation(root) as here:
        here.start_hub()
        here.add_party("north")
        dataset = {"path": _data(data / "d.npz"), "format": "npz", "labels": LABELS, "value_range": [0.0, 1.0]}
        _data(data / "other.npz")
        content = dataset["path"].read_bytes()  # type: ignore[attr-defined]
        limits = {"threads": 1, "seconds": TASK_SECONDS, "memory_gib": 1}
        path = here.add_site("north", {"data": dataset}, allow={"north": ["fit", "evaluate"]}, limits=limits)
        scripts = [data / "worker.py", data / "child.py"]
        for script, text in zip(scripts, (WORKER, CHILD), strict=True):
            script.write_text(text)
        known = [path.parent, here.url.rpartition(":")[2], broker.socket_path(load_site(path))]
        command = [sys.executable, "-c", SITE, path, *scripts, *known]
        site = here.processes.start("north's site", list(map(str, command)), log=root / "north.log")
        here.wait_until_ready()
        hub = Hub(here.url, here.token("north"))
        _publish(hub, data)
        here.wait_until_online("north")
        jobs = {}
        before: set[int] = set()
        rules = path.read_text()
        for name in (*ATTACKS, "other"):
            seconds = LOOP_SECONDS if name == "loops" else TASK_SECONDS
            write_text(path, rules.replace(f"seconds = {TASK_SECONDS}", f"seconds = {seconds}"))
            job = hub.stitch(["north/honest", f"north/{name}"], "data", publish_as="both", **QUICK)
            try:
                jobs[name] = job.wait(WAIT, progress=False)
            except SutureError:
                jobs[name] = job.refresh()
            processes = _parts(psutil.Process(site.process.pid))
            before = before or processes
        hub.connection.close()
        left = [process.info["cwd"] or "" for process in psutil.process_iter(["cwd"])]
        children = [place for place in left if place.startswith(str(path.parent / "state" / "tasks"))]
    return Played(path.parent, dataset["path"], content, jobs, before, processes, children)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_its_own_task(played: Played, attack: str) -> None:
    job = played.jobs[attack]
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == ATTACKS[attack], played.failure(attack)["text"]
    assert job.result is None
    assert played.failure(attack)["code"] == ATTACKS[attack]


def test_the_site_goes_on(played: Played) -> None:
    """The same processes do the next job, and no child of an attack is left."""
    assert played.jobs["other"].state == "complete", played.jobs["other"].error
    assert len(played.before) >= 4
    assert played.after == played.before
    assert played.children == []


@pytest.mark.parametrize("attack", ["looks", "looks-on-a-gpu"])
def test_the_child_reaches_nothing_but_its_task(played: Played, attack: str) -> None:
    line = next(line for line in played.failure(attack)["text"].splitlines() if line.startswith("SAID "))
    said = json.loads(line.removeprefix("SAID "))
    assert set(said.pop("environment")) <= {*forkserver.PASSED_ON, "HOME", "TMPDIR", "OMP_WAIT_POLICY", *OF_LIBRARIES}
    assert said.pop("data are there")
    assert said.pop("threads that are not confined") == []
    assert said.pop("open") == []
    assert len(said) == 37
    could = {name for name, what in said.items() if what == "could"}
    if not confine.files_supported():
        could &= {
            "reach the hub",
            "reach it by IPv6",
            "reach Redis",
            "make a socket",
            "have more memory",
            "start a process",
        }
    if confine._landlock_version() < SIGNALS:
        could -= {"signal its server", "signal its worker", "signal the agent"}
    # Of sockets, local ones stay where there is a GPU.
    assert could == ({"make a socket"} if attack.endswith("gpu") else set())


def test_a_child_with_a_second_thread_does_not_begin(tmp_path: Path) -> None:
    script = """
import sys, threading
from pathlib import Path
from suture_worker.compute.child import give_up
from suture_worker.folder import Run, TaskFolder

if sys.argv[2] == "two":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
run = Run(device="cpu", threads=1, memory_bytes=2**30, cpu_seconds=60, min_samples=11, dataset=None)
give_up(TaskFolder(Path(sys.argv[1]), "task_1"), run)
"""
    for number, status in (("one", 0), ("two", 1)):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), number],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        assert ("2 threads" in ended.stderr) == (number == "two")


def test_the_data_are_as_they_were(played: Played) -> None:
    assert played.data.read_bytes() == played.content
    assert {path.name for path in played.data.parent.glob("*.npz")} == {"d.npz", "other.npz"}
