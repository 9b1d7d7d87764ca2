"""What a person can judge about a dataset: ranges, shares, sizes, patients, duplicates; and samples to look at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_stitching.data.dataset import Dataset
from suture_stitching.data.spec import SPLITS, Split
from suture_stitching.data.words import of_one_patient

#: Samples per split that are read.
MOST = 2000
_AT_ONCE = 16


@dataclass(frozen=True)
class SplitLook:
    """Of one split: samples, patients (None where the data do not say), and samples by label."""

    n: int
    patients: int | None
    labels: dict[str, int]


@dataclass(frozen=True)
class Look:
    """What was seen in the samples `read`, as the models get them.

    `low` and `high` are the 1st and 99th percentile of their values, `black` the share at the lowest, and `white` at
    the highest end of the range. `twice` are samples whose content another has, `across` those of which another split
    has it.
    """

    shape: tuple[int, ...]
    value_range: tuple[float, float] | None
    read: int
    low: float
    high: float
    mean: float
    black: float
    white: float
    twice: int
    across: int
    skipped: int
    notes: tuple[str, ...]
    splits: dict[str, SplitLook] = field(default_factory=dict)
    #: Files that are named as if another were of the same patient, where nothing says whose they are.
    alike: int = 0
    #: Patients whose ids are another's but for case, spaces and zeros.
    written_alike: int = 0

    @property
    def doubts(self) -> list[str]:
        """Return what is probably wrong."""
        doubts = []
        if self.across:
            doubts.append(f"{self.across} samples have the same content as one in another split")
        elif self.twice:
            doubts.append(f"{self.twice} samples have the same content as another one")
        if self.alike:
            doubts.append(
                f"{self.alike} files are named, or lie, as if others were of the same patient, and no group says "
                "which are: splits may share patients, and intervals count files"
            )
        if self.written_alike:
            doubts.append(
                f"{self.written_alike} patients' ids are another's but for case, spaces and zeros: each counts as a "
                "patient of its own, so one person may be in two splits; write them alike if they are one"
            )
        if len(self.shape) > 1 and self.black > 0.98:
            doubts.append(f"{self.black:.0%} of the values are the lowest of their range")
        if len(self.shape) > 1 and self.white > 0.98:
            doubts.append(f"{self.white:.0%} of the values are the highest of their range")
        if self.value_range is not None and self.high - self.low < 0.1 * (self.value_range[1] - self.value_range[0]):
            low, high = self.value_range
            doubts.append(f"the values take less than a tenth of the range {low:g} to {high:g}")
        return doubts

    def words(self) -> str:
        """Return the numbers of what was read, on one line; of tables, where values are patients' own, none."""
        parts = [f"{self.read} samples looked at"]
        if len(self.shape) > 1:
            parts.append(
                f"values mostly {self.low:.3g} to {self.high:.3g}, mean {self.mean:.3g}, {self.black:.0%} black"
            )
        if self.twice:
            parts.append(f"{self.twice} with the content of another")
        return ", ".join(parts)


def look(dataset: Dataset, most: int = MOST) -> Look:
    """Read up to `most` samples of each split and return what they show; raises `SutureError` (`dataset.*`)."""
    seen: dict[bytes, set[str]] = {}
    times: dict[bytes, int] = {}
    drawn = np.random.default_rng(0)
    values: list[NDArray[Any]] = []
    total, count, read = 0.0, 0, 0
    ends = [0, 0]
    bounds = dataset.value_range
    for split in (name for name in SPLITS if dataset.n(name)):
        batches = -(-min(dataset.n(split) * dataset.patches, most) // _AT_ONCE)
        for inputs, _ in dataset.batches(split, _AT_ONCE, only=range(batches)):
            array = inputs.numpy()
            for sample in array:
                key = hashlib.sha256(sample.tobytes()).digest()
                seen.setdefault(key, set()).add(split)
                times[key] = times.get(key, 0) + 1
            total, count, read = total + float(array.sum(dtype=np.float64)), count + array.size, read + len(array)
            if bounds is not None:
                slack = 1e-6 * (bounds[1] - bounds[0])
                ends[0] += int((array <= bounds[0] + slack).sum())
                ends[1] += int((array >= bounds[1] - slack).sum())
            values.append(drawn.choice(array.reshape(-1), min(array.size, 512), replace=False))
    low, high = np.percentile(np.concatenate(values), (1, 99)).tolist()
    across = 0 if dataset.window else sum(times[key] for key, splits in seen.items() if len(splits) > 1)
    twice = 0 if dataset.window else sum(n for n in times.values() if n > 1)
    return Look(
        shape=tuple(dataset.input_shape),
        value_range=bounds,
        read=read,
        low=low,
        high=high,
        mean=total / count,
        black=ends[0] / count,
        white=ends[1] / count,
        twice=twice,
        across=across,
        skipped=len(dataset.skipped),
        notes=dataset.notes,
        splits={str(split): _split(dataset, split) for split in SPLITS},
        alike=0 if dataset.grouped else of_one_patient(dataset.samples),
        written_alike=dataset.written_alike,
    )


def _split(dataset: Dataset, split: Split) -> SplitLook:
    patients = dataset.patients(split) if dataset.grouped else None
    return SplitLook(dataset.n(split), patients, dataset.counts(split))


def contact_sheet(dataset: Dataset, most: int = 24, side: int = 128) -> Any:
    """Return a picture (`PIL.Image`) of samples of the training split, each with its label, or its mask in red.

    It shows patients: it is for the site alone. Of volumes it shows the slice in the middle.
    """
    from PIL import Image, ImageDraw

    shown = min(most, dataset.n("train") * dataset.patches)
    columns = min(6, shown)
    rows = -(-shown // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 18)), "white")
    draw = ImageDraw.Draw(sheet)
    place = 0
    for inputs, targets in dataset.batches("train", shown, seed=0, only=range(1)):
        for sample, target in zip(inputs.numpy(), targets.numpy(), strict=True):
            picture, mask = sample, target if dataset.task == "segmentation" else None
            while picture.ndim > 3:
                picture = picture[..., picture.shape[-1] // 2]
                mask = None if mask is None else mask[..., mask.shape[-1] // 2]
            x, y = place % columns * (side + 4), place // columns * (side + 18)
            sheet.paste(_thumbnail(picture, mask, dataset.value_range, side), (x, y))
            draw.text((x + 2, y + side + 2), _label(target, dataset)[:20], fill="black")
            place += 1
    return sheet


def _thumbnail(picture: NDArray[Any], mask: Any, bounds: tuple[float, float] | None, side: int) -> Any:
    from PIL import Image

    if picture.ndim == 2:  # a signal: each channel is a row
        picture = picture[None]
    low, high = bounds or (float(picture.min()), float(picture.max()))
    scaled = ((picture - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
    colours = np.moveaxis(scaled[:3], 0, -1) if len(scaled) >= 3 else np.repeat(scaled[0][..., None], 3, axis=2)
    if mask is not None:
        colours = np.where((mask > 0)[..., None], (colours // 2 + np.array([127, 0, 0])).astype(np.uint8), colours)
    return Image.fromarray(np.ascontiguousarray(colours)).resize((side, side), Image.Resampling.NEAREST)


def _label(target: NDArray[Any], dataset: Dataset) -> str:
    if dataset.task == "classification":
        return dataset.labels[int(target)]
    if dataset.task == "multilabel":
        return ", ".join(label for label, there in zip(dataset.labels, target, strict=True) if there) or "none"
    if dataset.task == "segmentation":
        return ", ".join(dataset.labels[index] for index in np.unique(target).tolist())
    return ", ".join(f"{value:.3g}" for value in np.atleast_1d(target).tolist())


__all__ = ["Look", "SplitLook", "contact_sheet", "look"]
