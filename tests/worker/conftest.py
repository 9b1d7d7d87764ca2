"""A site's configuration and leased tasks as the hub writes them, with tiny data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from suture_stitching.portable.export import export
from suture_worker.config import SiteConfig, load_site, prepare_state

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

[[policy.allow]]
parties = ["north"]
actions = ["fit", "evaluate"]
datasets = ["patches"]

[[policy.allow]]
parties = ["south"]
actions = ["evaluate"]
datasets = ["patches", "other"]
"""

METADATA: dict[str, Any] = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [6, 6]}},
    "outputs": {"class": {"format": "logits", "num_channels": 2}},
    "labels": ["dark", "bright"],
    "license": "CC-BY-4.0",
}


def write_site(folder: Path, *, url: str = "http://127.0.0.1:9", limits: str = "", token: str = "suture_t_1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.toml"
    path.write_text(SITE.format(url=url, limits=limits))
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


FILES = {name: {"sha256": "a" * 64, "size": 10} for name in ("candidates.json", "stitches.safetensors")}


def leased(kind: str = "fit", *, requester: str = "north", fence: int = 1, **spec: Any) -> dict[str, Any]:
    """A task as the hub leases it."""
    members = [member(0), member(1)]
    specs: dict[str, dict[str, Any]] = {
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


@pytest.fixture
def write_json() -> Callable[[Path, Any], None]:
    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    return write


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The functions of this file."""
    return sys.modules[__name__]
