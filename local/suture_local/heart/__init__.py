"""Four hospitals with real tables: heart disease, as they recorded it for the same study.

Cleveland, Budapest (`hungarian`), Zurich and Basel (`switzerland`) and Long Beach (`va`) wrote down the same columns of
patients who were sent for an angiography. They differ in whom they saw: nearly all of Switzerland's patients are ill,
fewer than half of the first two's. Each trains a small network of its own kind. Origin, licence and whom to name:
`README.md` beside the tables.

Everybody reads the columns that all four filled for most patients. Empty cells become the column's mean, as a site's
reader of tables does it; so the parties' samples are read with that reader.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suture.bundle import Description
from suture_contract.documents import Report
from suture_local.story import Judged, PartyData, Story, Target
from suture_local.training import untrained
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.dataset import shares_of

#: The one that asks is the first.
PARTIES = ("cleveland", "hungarian", "switzerland", "va")
#: What the column `disease` says with 0 and 1.
LABELS = ("healthy", "diseased")
FEATURES = ("age", "sex", "cp", "trestbps", "restecg", "thalach", "exang", "oldpeak")


def table(party: str) -> Path:
    """Return the hospital's table, with all its columns."""
    return Path(__file__).with_name(f"{party}.csv")


def described(path: Path, seed: int) -> dict[str, Any]:
    """Return how a site.toml describes a hospital's table; the seed divides the patients."""
    return {
        "path": path,
        "format": "csv",
        "labels": ["0", "1"],
        "aliases": dict(zip(("0", "1"), LABELS, strict=True)),
        "columns": {"label": "disease", "features": FEATURES},
        "missing": "mean",
        "split": {"seed": seed},
    }


def parties(seed: int = 0) -> dict[str, PartyData]:
    """Return each hospital's patients as a site reads them, divided by the seed."""
    return {party: _read(table(party), seed) for party in PARTIES}


def _read(path: Path, seed: int) -> PartyData:
    dataset = open_dataset(DatasetSpec.model_validate(described(path, seed)))
    inputs, labels, names = [], [], []
    for split in SPLITS:
        for x, y in dataset.batches(split, 64):
            inputs.append(x.numpy())
            labels.append(y.numpy())
            names += [split] * len(x)
    return PartyData(np.concatenate(inputs), np.concatenate(labels), np.array(names), dataset.split_digest())


def _write(party: str, data: PartyData, seed: int, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    path = folder / "heart.csv"
    shutil.copyfile(table(party), path)
    return described(path, seed)


def network(party: str, data: PartyData, seed: int = 0) -> nn.Module:
    """Return the party's untrained network, (N, 8) to logits (N, 2); it brings its columns to the party's scale."""
    return untrained(partial(DESIGNS[party], data.of("train")[0]), seed)


class _Scaled(nn.Module):
    """Columns less their mean, divided by their deviation, of the `seen` samples."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, seen: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(seen.mean(0)))
        self.register_buffer("deviation", torch.from_numpy(seen.std(0).clip(1e-3)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class WideNetwork(nn.Sequential):
    """One wide hidden layer and a narrow one."""

    def __init__(self, seen: NDArray[np.float32]) -> None:
        super().__init__(
            _Scaled(seen), nn.Linear(seen.shape[1], 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2)
        )


class SmoothNetwork(nn.Sequential):
    """Two hidden layers of hyperbolic tangents."""

    def __init__(self, seen: NDArray[np.float32]) -> None:
        super().__init__(
            _Scaled(seen), nn.Linear(seen.shape[1], 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
        )


class NarrowNetwork(nn.Sequential):
    """Two narrow hidden layers."""

    def __init__(self, seen: NDArray[np.float32]) -> None:
        super().__init__(
            _Scaled(seen), nn.Linear(seen.shape[1], 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        )


class ResidualTableNetwork(nn.Module):
    """An embedding, and a block whose output is added to it."""

    def __init__(self, seen: NDArray[np.float32]) -> None:
        super().__init__()
        self.embed = nn.Sequential(_Scaled(seen), nn.Linear(seen.shape[1], 16))
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 2)."""
        x = self.embed(x)
        return self.head(x + self.block(x))  # type: ignore[no-any-return]


#: The parties' networks.
DESIGNS: dict[str, type[nn.Module]] = {
    "cleveland": WideNetwork,
    "hungarian": SmoothNetwork,
    "switzerland": NarrowNetwork,
    "va": ResidualTableNetwork,
}


def _describe(party: str, data: PartyData) -> Description:
    return {
        "labels": LABELS,
        "label_prior": [round(share, 4) for share in shares_of(data.of("train")[1], LABELS).values()],
        "license": "CC-BY-4.0",
        "channels": FEATURES,
        "description": f"Heart disease from eight columns, learnt at {party}.",
        "training_data": f"the table of {party} in the heart disease data set (UCI), CC BY 4.0",
        "n": int((data.split == "train").sum()),
        "trained_on": "train",
        "split_digest": data.split_digest,
        "doi": "10.24432/C52P4X",
    }


def _targets(judged: Mapping[str, Judged], report: Report) -> list[Target]:
    here = judged["cleveland"]
    return [
        Target("no worse than cleveland's own model at cleveland", here.over_own, "reaches"),
        Target("no worse than hungarian's own model at hungarian", judged["hungarian"].over_own, "reaches"),
        Target("no worse than the plain ensemble at va", judged["va"].over_plain, "reaches"),
        Target("beside the plain ensemble at cleveland", here.over_plain, "shown"),
        Target("beside the plain ensemble at hungarian", judged["hungarian"].over_plain, "shown"),
        Target("beside the plain ensemble at switzerland", judged["switzerland"].over_plain, "shown"),
    ]


_REMARK = (
    "Three differences have no target, for over seeds they fall on either side. Each hospital uses the file with its "
    "own shares of labels where the chosen model takes them. Of Switzerland's 123 patients 115 are ill: calling "
    "everybody ill is right in 93 %. Its own model does little else, and a model without these shares looks worse "
    "there."
)


STORY = Story(
    name="heart",
    parties=PARTIES,
    labels=LABELS,
    opening="four hospitals with tables of their own: age, blood pressure and six more columns of 920 patients",
    sample="patient",
    prediction="this patient is {label} (probability {probability:.3f}; the angiography said {truth})",
    divide=parties,
    write=_write,
    network=network,
    epochs=60,
    describe=_describe,
    targets=_targets,
    remark=_REMARK,
)
