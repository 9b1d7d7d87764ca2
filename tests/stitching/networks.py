"""Small random networks, exported and with metadata: members for the engine's tests."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member
from suture_stitching.fitting.fit import FitResult
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

SHAPE = (2, 8, 8)
LABELS = ("a", "b", "c")


def plain(outputs: int = 3, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 10),
        nn.Tanh(),
        nn.Linear(10, outputs),
    )


def deep(outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 9, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 8),
        nn.ReLU(),
        nn.Linear(8, outputs),
    )


def wide(width: int, layers: int = 2) -> nn.Module:
    sizes = [prod(SHAPE), *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, len(LABELS)))


class Tokens(nn.Module):
    """Patches as a sequence `(N, L, C)`, mixed by attention, then averaged."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.first = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.relu(self.first(self.patches(x).flatten(2).transpose(1, 2)))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(torch.relu(self.hidden(tokens.mean(1))))


class UNet(nn.Module):
    def __init__(self, outputs: int = 3, width: int = 4) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2)
        self.up2 = nn.Sequential(nn.Conv2d(4 * width, width, 3, padding=1), nn.ReLU())
        self.up1 = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down1(x)
        two = self.down2(one)
        up = self.up2(torch.cat([self.up(self.bottom(two)), two], 1))
        return self.head(self.up1(torch.cat([self.up(up), one], 1)))


def member(
    module: nn.Module,
    folder: Path,
    name: str = "north/net",
    *,
    labels: Sequence[str] | None = LABELS,
    task: str = "classification",
    seed: int = 0,
    spatial: bool = False,
    **given: object,
) -> Member:
    """Give `module` weights from `seed`, export it and load it again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
    path = folder / f"{name.replace('/', '.')}.safetensors"
    example = torch.randn(2, *SHAPE)
    _exported(module.eval(), example, path, spatial)
    size = (None, None) if spatial else SHAPE[1:]
    output = {"num_channels": int(module(example).shape[1])}
    if task == "segmentation":
        output["spatial_shape"] = size
    if task == "regression":
        output["format"] = "values"
    metadata = {
        "schema": "suture.model/1",
        "task": task,
        "inputs": {"x": {"num_channels": SHAPE[0], "spatial_shape": size, **given}},
        "outputs": {"y": output},
        "labels": labels,
        "license": "Apache-2.0",
    }
    number = f"{seed:040x}"
    ref = MemberRef(repo=name, revision=number, sha256=f"{seed:064x}")
    return Member(load(path), ModelMetadata.model_validate(metadata), ref)


#: What was exported in this process: tests ask for the same networks again and again.
_EXPORTED: dict[tuple[object, ...], bytes] = {}


def keep_exported(path: Path) -> None:
    """Write down which plain sequences were exported, and to what, for a process that asks for the same ones."""
    path.write_bytes(pickle.dumps({key: content for key, content in _EXPORTED.items() if key[0] is nn.Sequential}))


def take_exported(path: Path) -> None:
    _EXPORTED.update(pickle.loads(path.read_bytes()))


def _exported(module: nn.Module, example: torch.Tensor, path: Path, spatial: bool) -> None:
    """Export to `path`, or write what the same layers with the same weights were exported to before."""
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values()))
    key = (type(module), str(module), weights.digest(), spatial)
    if key in _EXPORTED:
        path.write_bytes(_EXPORTED[key])
    else:
        export(module, example, path, dynamic_spatial=spatial)
        _EXPORTED[key] = path.read_bytes()


def images(n: int = 90, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class can be seen, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, *SHAPE)).astype(np.float32)
    x[np.arange(n), 0, y, :] += 2.0
    return x, y


def dataset(labels: Sequence[str] = LABELS, n: int = 90, seed: int = 0) -> ArrayDataset:
    x, y = images(n, len(labels), seed)
    return ArrayDataset(x, y, labels)


def masks(n: int = 60, seed: int = 0) -> ArrayDataset:
    x, _ = images(n, 3, seed)
    y = np.digitize(x[:, 0] + x[:, 1], [0.0, 2.0])
    return ArrayDataset(x, y, LABELS, task="segmentation")


class MixedPrecision(nn.Module):
    """Full precision where it matters, as in `with torch.autocast(..., enabled=False)`."""

    def __init__(self, enabled: bool, device: str = "cpu") -> None:
        super().__init__()
        self.fc, self.enabled, self.device = nn.Linear(3, 3), enabled, device

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        with torch.autocast(self.device, enabled=self.enabled):
            a, b = self.fc(y).float() * 2, y + 1
            with torch.autocast("cpu", enabled=False):
                b = b.exp()
        return a - b


def same_weights(one: FitResult, other: FitResult) -> bool:
    """Whether two fits have the same stitches bit by bit."""
    a, b = one.stitches, other.stitches
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_fit(one: FitResult, other: FitResult) -> bool:
    """Whether two fits have the same candidates, and the same stitches bit by bit."""
    return one.candidates == other.candidates and same_weights(one, other)
