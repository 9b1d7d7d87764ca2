"""A site's configuration and leased tasks as the hub writes them, with tiny data."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from sqlalchemy import select, update
from torch import nn

from suture.errors import HubError
from suture.http import Connection
from suture.hub import Hub
from suture.job import Job
from suture.processes import Processes
from suture_contract.files import sha256_of
from suture_contract.model.metadata import ModelMetadata, Trusted
from suture_contract.model.signature import create_key
from suture_local.ports import free_port
from suture_service import operate
from suture_service.database import Database
from suture_service.settings import Settings
from suture_service.tables import Task
from suture_stitching.portable.export import export
from suture_worker.compute.checking import check_model
from suture_worker.compute.preview import estimate
from suture_worker.compute.work import server
from suture_worker.config import SiteConfig, load_site, prepare_state
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.inbox import Estimate

SITE = """\
[hub]
url = "{url}"
token_file = "token"

[site]
state = "state"
device = "cpu"

[limits]
threads = 1
{limits}
[datasets.patches]
path = "patches.npz"
format = "npz"
labels = ["dark", "bright"]

[datasets.other]
path = "other.npz"
format = "npz"
labels = ["dark", "bright"]

[policy]
min_samples = 11
"""

RULE = """
[[policy.allow]]
parties = {parties}
actions = {actions}
datasets = {datasets}
"""
#: What every rule trusts: these parties' models, signed by the one key of these tests.
TRUST = """\
members_from = {parties}
signed_by = ["tests"]
"""
PRIVATE, PUBLIC = create_key()
#: Parties, actions, datasets.
Rule = tuple[list[str], list[str], list[str]]
RULES: list[Rule] = [
    (["north"], ["fit", "evaluate"], ["patches"]),
    (["south"], ["evaluate"], ["patches", "other"]),
]

METADATA: dict[str, Any] = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [6, 6]}},
    "outputs": {"class": {"format": "logits", "num_channels": 2}},
    "labels": ["dark", "bright"],
    "license": "CC-BY-4.0",
}


def write_site(
    folder: Path,
    *,
    url: str = "http://127.0.0.1:9",
    limits: str = "",
    token: str = "suture_t_1",
    rules: Sequence[Rule] = RULES,
    trusting: Sequence[str] | None = ("north", "south", "east"),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.toml"
    text = SITE.format(url=url, limits=limits)
    if trusting:
        text += '\n[keys]\ntests = "tests.pub"\n'
        (folder / "tests.pub").write_text(PUBLIC.pem)
    for rule in rules:
        parties, actions, datasets = map(json.dumps, rule)
        text += RULE.format(parties=parties, actions=actions, datasets=datasets)
        text += TRUST.format(parties=json.dumps(trusting)) if trusting else ""
    path.write_text(text)
    (folder / "token").write_text(f"{token}\n")
    (folder / "token").chmod(0o600)
    return path


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    config = load_site(write_site(tmp_path / "site"))
    prepare_state(config)
    return config


def patches(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 6, 6) that are mostly dark or mostly bright, and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = np.clip(rng.normal(0.35 + 0.3 * labels[:, None, None, None], 0.25, (n, 1, 6, 6)), 0, 1)
    return images.astype(np.float32), labels.astype(np.int64)


def save_patches(path: Path, n: int = 120, seed: int = 0) -> None:
    images, labels = patches(n, seed)
    np.savez(path, images=images, labels=labels)


def member(index: int, **changes: Any) -> dict[str, Any]:
    party = ("north", "south", "east")[index]
    entry = {"repo": f"{party}/net", "revision": f"{index}" * 40, "sha256": f"{index}" * 64, "size": 100}
    return {**entry, "party": party, "metadata": METADATA, **changes}


def refs(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: entry[key] for key in ("repo", "revision", "sha256")} for entry in task["spec"]["members"]]


PLACEMENTS = [{"0": "n4", "1": "n5"}]
FILES = {name: {"sha256": "a" * 64, "size": 10} for name in ("candidates.json", "stitches.safetensors")}


def leased(kind: str = "fit", *, requester: str = "north", fence: int = 1, **spec: Any) -> dict[str, Any]:
    """A task as the hub leases it."""
    members = [member(0), member(1)]
    specs: dict[str, dict[str, Any]] = {
        "match": {"members": members, "dataset": "patches", "options": {}},
        "contribute": {"members": members, "dataset": "patches", "placements": PLACEMENTS, "norms": [2.5]},
        "fit": {"members": members, "dataset": "patches", "options": {}},
        "evaluate": {"members": members, "dataset": None, "own": 0, "candidates": FILES},
        "compose": {
            "members": members,
            "candidates": FILES,
            "evaluations": {},
            "missing": [],
            "publish_as": "north/both",
            "job": "job_1",
        },
    }
    return {
        "id": f"task_{kind}",
        "kind": kind,
        "attempt": 1,
        "fence": fence,
        "lease_seconds": 60,
        "lease_expires_at": "2030-01-01T00:00:00Z",
        "job": {"id": "job_1", "requester": requester},
        "spec": {**specs[kind], **spec},
    }


def candidates(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The candidates of a fit of two members: each alone, both, and one stitched."""
    stitches = [
        {"source": 1, "target": 0, "weight": "s0.weight", "bias": "s0.bias", "r2": 0.123456789},
        {"source": 0, "target": 1, "weight": "s1.weight", "bias": "s1.bias", "r2": 0.5},
    ]
    match = {"points": {"0": "n4", "1": "n5"}, "alpha": 1 / 3, "stitches": stitches}
    return {
        "schema": "suture.candidates/1",
        "task": "classification",
        "members": refs(task),
        "labels": ["dark", "bright"],
        "n": 60,
        "seed": 0,
        "candidates": [
            {"id": "c00", "kind": "single", "members": [0]},
            {"id": "c01", "kind": "single", "members": [1]},
            {"id": "c02", "kind": "ensemble", "members": [0, 1]},
            {"id": "c03", "kind": "stitched", "members": [0, 1], "matches": [match], "refined": False},
        ],
        **changes,
    }


def stitches(**changes: Any) -> dict[str, np.ndarray]:
    tensors = {"s0.weight": (2, 3), "s0.bias": (2,), "s1.weight": (3, 2), "s1.bias": (3,)}
    return {**{name: np.ones(shape, dtype=np.float32) for name, shape in tensors.items()}, **changes}


def evaluation(own: int | None = 0, n: int = 40, value: float = 0.81234567) -> dict[str, Any]:
    score = {"value": value, "low": value - 0.1, "high": value + 0.1}
    scores = {f"c0{index}": score for index in range(4)}
    return {
        "schema": "suture.evaluation/1",
        "metric": "accuracy",
        "own": own,
        "splits": {split: {"n": n, "scores": scores} for split in ("validation", "test")},
    }


@pytest.fixture(scope="session", autouse=True)
def _no_server_is_left() -> Iterator[None]:
    yield
    server.stop()


@pytest.fixture(scope="session")
def networks() -> list[nn.Module]:
    """Two small networks of different kind, (N, 1, 6, 6) to two classes, each trained a little."""
    torch.manual_seed(0)
    nets: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
    ]
    for seed, net in enumerate(nets):
        images, labels = map(torch.from_numpy, patches(60, 10 + seed))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(20):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimiser.step()
    return [net.eval() for net in nets]


@pytest.fixture(scope="session")
def portable(networks: list[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The networks as portable models."""
    folder = tmp_path_factory.mktemp("portable")
    paths = [folder / f"{index}.safetensors" for index in range(len(networks))]
    for net, path in zip(networks, paths, strict=True):
        export(net, torch.from_numpy(patches(2, 0)[0]), path)
    return paths


@pytest.fixture(scope="session")
def composed_model(portable: list[Path]) -> bytes:
    """A model of the size that a composition of the networks has."""
    return portable[0].read_bytes()


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Options of a fit that is soon done."""
    return {"refine_steps": 10, "refine_candidates": 1, "max_matches": 1, "alphas": [0.5]}


@pytest.fixture(scope="session")
def long() -> dict[str, Any]:
    """Options of a fit that can be interrupted."""
    return {"refine_steps": 100_000, "refine_candidates": 8}


@pytest.fixture(scope="session")
def members(portable: list[Path]) -> list[dict[str, Any]]:
    """The members as the hub describes them."""
    return [
        member(index, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
        for index, path in enumerate(portable)
    ]


@pytest.fixture
def data(site: SiteConfig) -> None:
    """Data where the site says they are."""
    save_patches(site.datasets["patches"].path)


#: Whose models an exact result of two members trusts.
TRUSTED = tuple(Trusted(party=party, key=PUBLIC.fingerprint) for party in ("north", "south"))


@pytest.fixture
def assign(site: SiteConfig, members: list[dict[str, Any]], portable: list[Path]) -> Callable[..., TaskFolder]:
    """Give the site a task whose files are all there, as the agent leaves it."""

    def prepare(
        kind: str = "fit", dataset: str | None = "patches", files: dict[str, bytes] | None = None, **spec: Any
    ) -> TaskFolder:
        task = LeasedTask.parse(leased(kind, members=members, **spec))
        folder = TaskFolder(site.state / "tasks", task.id)
        folder.create(Assignment(task=task, dataset=dataset))
        folder.note_terms(Terms(min_samples=11, trusted=TRUSTED))
        for index, path in enumerate(portable):
            folder.member(index).write_bytes(path.read_bytes())
            folder.note_signer(index, PUBLIC.fingerprint)
        for name, content in (files or {}).items():
            (folder.candidates / name).write_bytes(content)
        return folder

    return prepare


@pytest.fixture
def write_json() -> Callable[[Path, Any], None]:
    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    return write


_checked: dict[tuple[str, str], frozenset[str]] = {}
_estimated: dict[tuple[str, ...], Estimate | None] = {}


@pytest.fixture
def looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent has processes of their own find out of the same files is found out once, by the first test."""

    def checked(path: Path, metadata: ModelMetadata) -> frozenset[str]:
        key = sha256_of(path), metadata.to_json()
        if key not in _checked:
            _checked[key] = check_model(path, metadata)
        return _checked[key]

    def estimated(folder: TaskFolder) -> Estimate | None:
        key = tuple(sha256_of(path) for path in sorted(folder.members.glob("*.safetensors")))
        if key not in _estimated:
            _estimated[key] = estimate(folder)
        return _estimated[key]

    monkeypatch.setattr("suture_worker.agent.fetching.check_model", checked)
    monkeypatch.setattr("suture_worker.agent.admission.estimate", estimated)


@pytest.fixture
def heard_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's heartbeats follow each other sooner, though leases are so long that no stall ends one."""
    monkeypatch.setattr("suture_worker.agent.heartbeat.BEATS", 200)


class LiveHub:
    """A hub in a process of its own; parties, their models and their sites. No lease ends but by `lapse`."""

    def __init__(self, processes: Processes, folder: Path, port: int) -> None:
        self.processes = processes
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.settings = Settings(database_url=f"sqlite:///{folder / 'hub.db'}", store=str(folder / "store"))
        self._clients: dict[str, Hub] = {}
        self._database = Database(self.settings.database_url)

    def start(self) -> None:
        environment = {
            "SUTURE_HUB_DATABASE_URL": self.settings.database_url,
            "SUTURE_HUB_STORE": self.settings.store,
            "SUTURE_HUB_SWEEP_SECONDS": "0.2",
        }
        command = [sys.executable, "-m", "suture", "hub", "serve", "--port", str(self.port)]
        self.processes.start("hub", command, log=self.folder / "hub.log", environment=environment)
        with Connection(self.url, attempts=1, timeout=5) as probe:
            self.processes.wait_until(lambda: _answers(probe), "until the hub is ready", seconds=120)

    def stop(self) -> None:
        self.processes.stop("hub")

    def start_if_away(self) -> None:
        with Connection(self.url, attempts=1, timeout=5) as probe:
            if not _answers(probe):
                self.start()

    def client(self, party: str) -> Hub:
        """The party itself, which may publish and ask."""
        if party not in self._clients:
            token = operate.create_token(self.settings, party, ["publisher", "requester"])[1]
            self._clients[party] = Hub(self.url, token)
        return self._clients[party]

    def publish(self, party: str, path: Path) -> None:
        """Publish a network as the party's `net`, signed with the key of these tests."""
        key = self.folder / "tests.pem"
        key.write_bytes(PRIVATE)
        admin = Hub(self.url, operate.create_token(self.settings, party, ["admin"])[1])
        admin.keys.register(party, "tests", PUBLIC.pem)
        metadata = ModelMetadata.model_validate(METADATA)
        self.client(party).publish_file(
            path, f"{party}/net", metadata=metadata, key=key, visibility="all", show=lambda _parcel: None
        )

    def site_token(self, party: str) -> str:
        """The token of a new site of the party."""
        return operate.add_site(self.settings, party, f"site{uuid4().hex[:8]}")

    def lease_end(self, job: Job) -> datetime:
        """When the lease of a job's only task ends, unless a heartbeat renews it."""
        with self._database.reading() as session:
            return session.scalars(select(Task.lease_expires_at).where(Task.job_id == job.id)).one()

    def lapse(self, job: Job) -> None:
        """Have the lease of a job's only task end, and wait until the task is open again."""
        with self._database.writing() as session:
            session.execute(update(Task).where(Task.job_id == job.id).values(lease_expires_at=datetime.now(UTC)))
        self.processes.wait_until(lambda: job.refresh().tasks[0].state == "open", "until a lease lapses", seconds=120)

    def add_party(self) -> str:
        """A new party with a site, which has neither models nor open tasks of another test."""
        party = operate.add_party(self.settings, f"p{uuid4().hex[:8]}")
        self.site_token(party)
        return party


def _answers(hub: Connection) -> bool:
    try:
        hub.get("/readyz")
    except HubError:
        return False
    return True


@pytest.fixture(scope="session")
def live_hub(portable: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHub]:
    """A hub with the models north/net and south/net."""
    folder = tmp_path_factory.mktemp("hub")
    with Processes() as processes:
        hub = LiveHub(processes, folder, free_port())
        operate.migrate(hub.settings)
        for party in ("north", "south", "east"):
            operate.add_party(hub.settings, party)
        hub.start()
        for party, path in zip(("north", "south"), portable, strict=True):
            hub.publish(party, path)
        yield hub


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The functions of this file."""
    return sys.modules[__name__]
