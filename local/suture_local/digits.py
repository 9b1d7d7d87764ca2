"""Two parties with real images: the handwritten digits that scikit-learn carries, divided as hospitals' data are.

`north` saw mostly the digits 0 to 4, `south` mostly 5 to 9, and south's scanner blurs and has less contrast. Each
trains a network of its own kind on its own images: north a small one, which is seldom sure, south a large one, which is
sure of everything, on the other scanner's images, too. Neither model is any good for the other party's patients, and
their plain ensemble believes the one that is surer: the situation that stitching is for. (A large network would do
better at north, too: how stitching fares then, `benchmarks/study.py` says.)

    from suture_local import digits, training

    data = digits.parties(seed=0)["north"]
    module = training.train(digits.network("north", seed=0), *data.of("train"), seed=0)

Needs scikit-learn, which the extra `demo` brings; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from suture.bundle import Description
from suture_contract.documents import Interval, Report
from suture_local.story import Judged, PartyData, Story, Target
from suture_local.training import untrained
from suture_stitching.data import DatasetSpec, open_dataset

PARTIES = ("north", "south")
LABELS = tuple(str(digit) for digit in range(10))
#: Part of a party's images, per class, that is kept for fitting, for choosing and for the report.
SPLITS = {"train": 0.5, "validation": 0.2, "test": 0.3}
#: Part of the images of its own digits (0-4 north, 5-9 south) that a party has; the rest is the other's.
OWN_SHARE = 0.85


def every() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all digits `(1797, 1, 8, 8)` in [0, 1], and their labels.

    The file is read where scikit-learn carries it. To import the package for that takes as long as to import torch.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32), table[:, -1].astype(np.int64)


def parties(seed: int = 0) -> dict[str, PartyData]:
    """Divide the 1797 digits among the parties, class by class; the same seed gives the same division.

    No image is at both parties, and none is in two splits.
    """
    images, labels = every()
    rng = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.int64]]] = {party: [] for party in PARTIES}
    splits: dict[str, list[str]] = {party: [] for party in PARTIES}
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        owner, other = PARTIES if digit < 5 else PARTIES[::-1]
        cut = round(OWN_SHARE * len(shuffled))
        for party, mine in ((owner, shuffled[:cut]), (other, shuffled[cut:])):
            rows[party].append(mine)
            splits[party] += _split_names(len(mine))
    data = {}
    for party in PARTIES:
        order = np.concatenate(rows[party])
        seen = images[order] if party == "north" else other_scanner(images[order])
        data[party] = PartyData(seen, labels[order], np.array(splits[party]))
    return data


def _split_names(n: int) -> list[str]:
    validation, test = round(n * SPLITS["validation"]), round(n * SPLITS["test"])
    return ["train"] * (n - validation - test) + ["validation"] * validation + ["test"] * test


def other_scanner(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `images` (N, 1, 8, 8) as south's scanner shows them: blurred, and all between 0.4 and 0.7."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    kernel = kernel[:, None] * kernel[None, :]
    blurred = F.conv2d(torch.from_numpy(images), (kernel / kernel.sum())[None, None], padding=2)
    return (0.4 + 0.3 * blurred).numpy()


def network(party: str, seed: int = 0) -> nn.Module:
    """Return the party's untrained network, (N, 1, 8, 8) to logits (N, 10): different designs, widths and depths."""
    return untrained(DESIGNS[party], seed)


class SmallNetwork(nn.Sequential):
    """Two convolutions and the mean over the image: about 1,100 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = _conv(1, 8)
        self.pool = nn.MaxPool2d(2)
        self.block2 = _conv(8, 12)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(12, 10)


class ResidualNetwork(nn.Module):
    """A residual network of two stages and a hidden layer: about 110,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 24)
        self.stage1 = _Residual(24)
        self.down = _conv(24, 48, stride=2)
        self.stage2 = _Residual(48)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(48 * 4 * 4, 48), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.hidden(x))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


#: The parties' networks.
DESIGNS: dict[str, type[nn.Module]] = {"north": SmallNetwork, "south": ResidualNetwork}


def save(path: Path, data: PartyData) -> None:
    """Write images, labels and splits as a site reads them."""
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    np.savez(path, images=data.inputs, labels=data.labels, split=data.split)


def described(path: Path) -> dict[str, Any]:
    """Return how a site.toml describes the file."""
    return {"path": path, "format": "npz", "labels": LABELS, "value_range": [0.0, 1.0]}


def _write(party: str, data: PartyData, seed: int, folder: Path) -> dict[str, Any]:
    save(folder / "digits.npz", data)
    return described(folder / "digits.npz")


def _describe(party: str, data: PartyData) -> Description:
    return {
        "labels": LABELS,
        "license": "CC-BY-4.0",
        "value_range": (0.0, 1.0),
        "description": f"Handwritten digits as {party} sees them.",
        "training_data": "part of the optical recognition of handwritten digits data set (UCI)",
        "n": int((data.split == "train").sum()),
        "trained_on": "train",
        "split_digest": _split_digest(data),
    }


def _split_digest(data: PartyData) -> str:
    """Return the digest of the split, as the party's site tells it of its dataset."""
    with TemporaryDirectory(prefix="suture-") as folder:
        path = Path(folder) / "digits.npz"
        save(path, data)
        return open_dataset(DatasetSpec.model_validate(described(path))).split_digest()


def _targets(judged: Mapping[str, Judged], report: Report) -> list[Target]:
    here, there = judged["north"], judged["south"]
    # Nothing is gained over routing where routing itself was chosen, or cannot be told.
    over_routed = report.parties["north"].gains.get("routed", Interval(value=0, low=0, high=0))
    return [
        Target("better than north's own model at north", here.over_own, "above"),
        Target("better than the plain ensemble at north", here.over_plain, "above"),
        Target("better than routing alone at north", over_routed, "above"),
        Target("no worse than south's own model at south", there.over_own, "reaches"),
        Target("no worse than the plain ensemble at south", there.over_plain, "reaches"),
    ]


STORY = Story(
    name="digits",
    parties=PARTIES,
    labels=LABELS,
    opening="two parties with digits of their own; north saw mostly 0-4, south 5-9 on another scanner",
    sample="image",
    prediction="this image shows a {label} (probability {probability:.3f}; it is a {truth})",
    divide=parties,
    write=_write,
    network=lambda party, data, seed: network(party, seed),
    epochs=30,
    describe=_describe,
    targets=_targets,
)
