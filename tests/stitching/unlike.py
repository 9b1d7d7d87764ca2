"""Networks and data that differ in every way the engine is made for, small enough to learn in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.compatibility import ensemble_output
from suture_contract.model.format import check_against, check_file
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_stitching.data import ArrayDataset, Dataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import batches, shared_input
from suture_stitching.fitting.fit import FitOptions, FitResult, Member
from suture_stitching.objectives import objective_of
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load, save

ABC = ("a", "b", "c")
FINDINGS = ("one", "two", "three")
MASK = ("background", "cell")
QUICK = FitOptions(refine_steps=20, refine_candidates=2, max_matches=3, alphas=(0.5,))


def cnn(channels: int = 1, outputs: int = 3, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 12),
        nn.ReLU(),
        nn.Linear(12, outputs),
    )


class ViT(nn.Module):
    """Patches with a class token in front, which alone the head reads."""

    def __init__(self, channels: int = 1, size: int = 8, outputs: int = 3, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 1 + (size // 2) ** 2, width))
        layers = [nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def mlp(inputs: int, width: int, outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


class Cells(nn.Module):
    """A small U-Net with transposed convolutions."""

    def __init__(self, channels: int = 1, outputs: int = 2, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(self.out(torch.cat([self.up(self.bottom(skip)), skip], 1)))


class Residual(nn.Module):
    """Residual blocks with group norms, and upsampling added to the skip, as segmentation networks of MONAI do it."""

    def __init__(self, channels: int = 1, outputs: int = 2, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.block = nn.Sequential(nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(2, 2 * width), nn.ReLU())
        self.up = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Sequential(nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        skip = skip + self.block(skip)
        up = F.interpolate(self.up(self.deep(skip)), scale_factor=2.0, mode="bilinear")
        return self.head(up + skip)


def volume(width: int, outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(width, outputs),
    )


class Recurrent(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 8, batch_first=True)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.rnn(x.transpose(1, 2))[0]).mean(1)))


def wave(outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    )


@dataclass(frozen=True)
class Net:
    """A network, the shape it reads, and what is said of it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    labels: tuple[str, ...] | None = ABC
    value_range: tuple[float, float] | None = None
    preprocessing: dict[str, tuple[float, ...]] | None = None
    channels: tuple[str, ...] | None = None
    format: str = "image"
    output: str | None = None


def member(net: Net, data: Dataset, folder: Path, index: int, steps: int = 50) -> Member:
    """Export a network, and give it what it learns in a moment from the data as it reads them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        module = net.build()
        path = folder / f"{index}.safetensors"
        export(module.eval(), torch.rand(2, *net.shape), path)
        untrained = _member(net, module, path, data.task, index)
        task = objective_of([untrained.metadata], data.labels)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        module.train()
        for step in range(steps):
            for x, y in batches([untrained], data, "train", "cpu", seed=step):
                if net.preprocessing is not None:
                    mean, std = (torch.tensor(net.preprocessing[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
                    x = (x - mean) / std
                optimizer.zero_grad()
                task.loss(task.combine([module(x)], [0]), y).backward()
                optimizer.step()
    learnt, model = module.state_dict(), untrained.model
    assert {name for name, _ in module.named_parameters()} <= model.tensors.keys()
    tensors = {name: learnt.get(name, tensor) for name, tensor in model.tensors.items()}
    return replace(untrained, model=PortableModel(model.graph, tensors))


def _member(net: Net, module: nn.Module, path: Path, task: str, index: int) -> Member:
    with torch.no_grad():
        shape = tuple(module(torch.zeros(2, *net.shape)).shape[1:])
    spec = {
        "num_channels": net.shape[0],
        "spatial_shape": net.shape[1:],
        "value_range": net.value_range,
        "preprocessing": net.preprocessing,
        "channels": net.channels,
        "format": net.format,
    }
    given = net.output or ("values" if task == "regression" else "logits")
    metadata = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": task,
            "inputs": {"x": spec},
            "outputs": {"y": {"num_channels": shape[0], "spatial_shape": shape[1:], "format": given}},
            "labels": net.labels,
            "license": "Apache-2.0",
        }
    )
    ref = MemberRef(repo=f"p{index}/net", revision=f"{index:040x}", sha256=f"{index:064x}")
    return Member(load(path), metadata, ref)


def pictures(shape: Sequence[int] = (1, 8, 8), labels: Sequence[str] = ABC, n: int = 120, **given: object) -> Dataset:
    """Return images, signals or volumes in which a stripe shows the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(labels), n)
    x = rng.uniform(0, 0.5, (n, *shape)).astype(np.float32)
    width = shape[-1] // len(labels)
    for i, label in enumerate(y):
        x[i, ..., label * width : (label + 1) * width] += 0.4
    return ArrayDataset(x, y, labels, where="pictures", **given)


def columns(n: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)
    return ArrayDataset(x, y, ABC, channels=("age", "weight", "pulse", "noise"), where="table")


def cells(size: int = 16, n: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 0.4, (n, 1, size, size)).astype(np.float32)
    y = np.zeros((n, size, size), dtype=np.int64)
    for i in range(n):
        a, b = rng.integers(0, size // 2, 2)
        y[i, a : a + size // 2, b : b + size // 2] = 1
    x[:, 0] += 0.5 * y
    return ArrayDataset(x, y, MASK, task="segmentation", where="cells")


def findings(n: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    y = rng.random((n, 3)) < 0.4
    x = rng.uniform(0, 0.4, (n, 1, 8, 8)).astype(np.float32)
    for label in range(3):
        x[:, 0, 2 * label : 2 * label + 2] += 0.5 * y[:, label, None, None]
    return ArrayDataset(x, y.astype(np.float32), FINDINGS, task="multilabel", where="findings")


def sums(n: int = 120) -> Dataset:
    x = np.random.default_rng(0).uniform(0, 1, (n, 1, 8, 8)).astype(np.float32)
    x *= np.linspace(0.2, 1, n, dtype=np.float32).reshape(n, 1, 1, 1)
    y = np.stack([x.mean((1, 2, 3)), x[:, 0, :4].mean((1, 2))], 1)
    return ArrayDataset(x, 4 * y, task="regression", where="sums")


GREY, COLOUR = (1, 8, 8), (3, 8, 8)
SCALED = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def same_when_composed(
    members: list[Member], result: FitResult, id: str, data: Dataset, score: float, folder: Path
) -> None:
    """Check that the composed model, written and read again, scores what the candidate did."""
    composed = compose(members, result, id)
    again, task = (
        loaded(members, result, id, data, folder).model,
        objective_of([m.metadata for m in members], data.labels),
    )
    found = []
    for x, y in batches(members, data, "test", "cpu"):
        output = again(x)
        assert torch.equal(output, composed(x))
        found.append(task.scores(output, y))
    assert float(torch.cat(found).mean()) == pytest.approx(score, abs=1e-6)


def loaded(members: list[Member], result: FitResult, id: str, data: Dataset, folder: Path) -> Member:
    """Return a candidate, composed, written and read again."""
    composed = compose(members, result, id)
    path = folder / f"{id}.safetensors"
    save(composed.graph, composed.tensors, path)
    metadata = ModelMetadata(  # type: ignore[call-arg]
        schema="suture.model/1",
        task=data.task,
        inputs={"x": shared_input(members)},
        outputs={"y": ensemble_output([member.metadata for member in members], result.candidates.labels)},
        labels=result.candidates.labels,
        license="Apache-2.0",
    )
    check_against(check_file(path), metadata)
    return Member(load(path), metadata, MemberRef(repo=f"stitched/{id}", revision="5" * 40, sha256="5" * 64))
