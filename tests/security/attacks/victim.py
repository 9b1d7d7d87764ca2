"""Who is attacked: a hospital with small images of its patients, its honest network, and the fit it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_stitching.data import ArrayDataset
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

SIDE = 6
PIXELS = SIDE * SIDE
LABELS = ("healthy", "ill")
#: Where members are joined once, and nothing is trained: the shortest fit there is.
CLOSED = FitOptions(refine=False, alphas=(0.5,), max_matches=1)


@dataclass(frozen=True)
class Patients:
    """Images `(N, 1, SIDE, SIDE)` in 0..1, float32, one per patient; labels `(N,)`; the split of each."""

    images: Tensor
    labels: Tensor
    splits: np.ndarray

    def flat(self, split: str = "train") -> Tensor:
        """Return the images of one split as rows of pixels."""
        return self.images[torch.from_numpy(self.splits == split)].flatten(1)

    def dataset(self) -> ArrayDataset:
        return ArrayDataset(
            self.images.numpy(), self.labels.numpy(), LABELS, split=list(self.splits), value_range=(0.0, 1.0)
        )

    def without(self, index: int) -> Patients:
        """Return the same patients but for one."""
        kept = np.arange(len(self.labels)) != index
        chosen = torch.from_numpy(kept)
        return Patients(self.images[chosen], self.labels[chosen], self.splits[kept])


def patients(n: int = 160, seed: int = 0) -> Patients:
    """Return patients whose images are smooth and all different; who is bright at the top is ill."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=generator)
    images = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=True)
    images = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    labels = (images[:, 0, : SIDE // 2].mean((1, 2)) > images[:, 0, SIDE // 2 :].mean((1, 2))).long()
    splits = np.array(["train"] * (n - n // 4) + ["validation"] * (n // 8) + ["test"] * (n // 4 - n // 8))
    return Patients(images, labels, splits)


class Honest(nn.Module):
    """What the hospital itself has trained."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def trained(module: nn.Module, own: Patients, steps: int = 150) -> nn.Module:
    """Train what a network gives at its output, as anybody would."""
    x, y = own.images, own.labels
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.eval()


def honest(own: Patients, seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained(Honest(), own)


def member(module: nn.Module, folder: Path, party: str, number: int) -> Member:
    """Publish a network as any party does, and return it as the hospital gets it."""
    path = folder / f"{party}.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        # Checks that serve whoever publishes; who attacks leaves them out.
        patch.setattr("suture_stitching.portable.export.check_sane", lambda *_: None)
        export(module.eval(), torch.rand(2, 1, SIDE, SIDE), path)
    described = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": "classification",
            "inputs": {"x": {"num_channels": 1, "spatial_shape": [SIDE, SIDE], "value_range": [0, 1]}},
            "outputs": {"y": {"num_channels": len(LABELS)}},
            "labels": LABELS,
            "license": "Apache-2.0",
        }
    )
    ref = MemberRef(repo=f"{party}/net", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), described, ref)


def members(own: Patients, spy: nn.Module, folder: Path) -> list[Member]:
    """Return the hospital's own member and the attacker's."""
    return [member(honest(own), folder, "hospital", 1), member(spy, folder, "attacker", 2)]


def fitted(both: list[Member], own: Patients, options: FitOptions = CLOSED, **defence: Any) -> FitResult:
    """Return what leaves the hospital after a fit."""
    return fit(both, own.dataset(), options=options, own=0, **defence)
