"""Pairs of networks of different families, trained a little, go from `export` to a chosen candidate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture.bundle import export_model
from suture_stitching.data import ArrayDataset
from suture_stitching.fitting.fit import FitOptions
from suture_stitching.local import stitch
from suture_stitching.portable.runtime import load

LABELS = ("a", "b", "c")
OPTIONS = FitOptions(refine_steps=10, refine_candidates=1, max_matches=2, alphas=(0.5,))


def nets() -> Any:
    """Return MONAI's networks. To import them takes seconds, in each process that collects tests."""
    from monai.networks import nets

    return nets


class Swin(nn.Module):
    """MONAI's Swin transformer with the head of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets().swin_unetr.SwinTransformer(1, 4, (2, 2), (2, 2), (1,) * 4, (1,) * 4, spatial_dims=2)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[-1].mean((2, 3)))


class TabNet(nn.Module):
    """Two steps that each look at features of their own choice, as TabNet does, with gated linear units."""

    def __init__(self, features: int, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        self.choose = nn.ModuleList(nn.Linear(width, features) for _ in range(2))
        self.transform = nn.ModuleList(nn.Linear(features, 2 * width) for _ in range(3))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        step = F.glu(self.transform[0](x))
        decision = torch.zeros_like(step)
        for choose, transform in zip(self.choose, self.transform[1:], strict=True):
            step = F.glu(transform(x * choose(step).softmax(1)))
            decision = decision + F.relu(step)
        return self.head(decision)


@dataclass(frozen=True)
class Pair:
    """Two networks for inputs of one shape, and, of several outputs, the name of the first's."""

    left: Callable[[], nn.Module]
    right: Callable[[], nn.Module]
    shape: tuple[int, ...]
    task: str = "classification"
    outputs: tuple[str | None, str | None] = (None, None)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip


def vit(dims: int, size: int, patch: int) -> nn.Module:
    sizes, patches = (size,) * dims, (patch,) * dims
    return nets().ViT(1, sizes, patches, 12, 24, 2, 2, classification=True, num_classes=3, spatial_dims=dims)


def resnet(dims: int) -> nn.Module:
    return nets().ResNet(
        "basic", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=dims, n_input_channels=1, conv1_t_size=3, conv1_t_stride=1,
        num_classes=3, no_max_pool=True,
    )  # fmt: skip


PAIRS = {
    "cnn-vit": Pair(cnn, lambda: vit(2, 16, 4), (1, 16, 16), outputs=(None, "0")),
    "densenet-resnet": Pair(
        lambda: nets().DenseNet(2, 1, 3, init_features=4, growth_rate=4, block_config=(2, 2)),
        lambda: resnet(2), (1, 16, 16),
    ),
    "efficientnet-swin": Pair(
        lambda: nets().EfficientNet(["r1_k3_s11_e1_i32_o4_se0.25", "r2_k3_s22_e4_i4_o6_se0.25"], 2, 1, 3, image_size=32,
                                  depth_divisor=2),
        Swin, (1, 32, 32),
    ),
    "unet-segresnet": Pair(
        lambda: nets().UNet(2, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch"),
        lambda: nets().SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)),
        (1, 16, 16), task="segmentation",
    ),
    "cnn-transformer-of-signals": Pair(lambda: resnet(1), lambda: vit(1, 32, 4), (1, 32), outputs=(None, "0")),
    "mlp-tabnet": Pair(lambda: nets().FullyConnectedNet(6, 3, (12, 12)), lambda: TabNet(6), (6,)),
}  # fmt: skip


def samples(shape: tuple[int, ...], task: str, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return noise in which a band of the first axis, or a feature, says the class; or what is bright, as a mask."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    if task == "segmentation":
        x[:, :, 4:12, 4:12] += 2 * rng.integers(0, 2, (n, 1, 1, 1))
        return x, (x[:, 0] > 1).astype(np.int64)
    y = rng.integers(0, 3, n)
    for index, label in enumerate(y):
        band = slice(label * shape[-1] // 3, (label + 1) * shape[-1] // 3)
        x[index, ..., band] += 1.0
    return x, y


def trained(make: Callable[[], nn.Module], x: np.ndarray, y: np.ndarray, output: str | None, seed: int) -> nn.Module:
    """Train on two of the classes alone, and on all masks: each knows something that the other does not."""
    torch.manual_seed(seed)
    network = make().train()
    kept = np.flatnonzero((y != seed) if y.ndim == 1 else np.ones(len(y), bool))[:60]
    inputs, targets = torch.from_numpy(x[kept]), torch.from_numpy(y[kept])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(15):
        scores = network(inputs) if output is None else network(inputs)[int(output)]
        optimizer.zero_grad()
        F.cross_entropy(scores, targets).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_goes_from_export_to_a_chosen_candidate(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    x, y = samples(pair.shape, pair.task)
    labels = LABELS[:2] if pair.task == "segmentation" else LABELS
    files = []
    for index, (party, make, output) in enumerate(
        zip(("north", "south"), (pair.left, pair.right), pair.outputs, strict=True)
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MONAI and torch about the networks
            network = trained(make, x, y, output, seed=index)
        metadata = export_model(
            network, torch.from_numpy(x[:4]), tmp_path / f"{party}.safetensors", license="MIT", task=pair.task,
            labels=labels, output="logits", output_name=output,
        )  # fmt: skip
        (tmp_path / f"{party}.json").write_text(metadata.to_json())
        files.append(tmp_path / f"{party}.safetensors")
    dataset = ArrayDataset(x, y, labels, task=pair.task)
    stitched = stitch(files, dataset, tmp_path / "out", options=OPTIONS)
    kinds = {candidate.kind for candidate in stitched.report.candidates}
    assert "stitched" in kinds
    assert stitched.report.chosen in {candidate.id for candidate in stitched.report.candidates}
    rows = stitched.report.parties["north"].rows
    assert rows["chosen"].value >= rows["own"].value - 0.1
    # The file that was written is what was chosen.
    model = load(tmp_path / "out" / "model.safetensors")
    with torch.no_grad():
        outputs = model(torch.from_numpy(x[:5]))
        torch.testing.assert_close(outputs, stitched.model(torch.from_numpy(x[:5])))
    assert outputs.shape[1] == len(labels)
    assert bool(outputs.isfinite().all())
