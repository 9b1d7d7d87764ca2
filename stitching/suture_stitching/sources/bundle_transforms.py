"""What a bundle does to an image before the network, in the words of `suture.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Transforms that leave an image's values and voxels alone, but for an empty border.
_PASSIVE = frozenset({
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "CastToType",
    "ToDevice", "SelectItems", "CopyItems", "DeleteItems", "SpatialPad", "DivisiblePad", "BorderPad", "CropForeground",
    "Identity",
})  # fmt: skip
#: Transforms that the data set does, and which of its fields says how.
_BY_THE_DATA = {
    "Orientation": "has its axes turned to {axcodes}",
    "Resize": "is resized to {spatial_size} (in the dataset: resize)",
    "ResizeWithPadOrCrop": "is padded or cropped to {spatial_size} (in the dataset: pad, crop)",
    "CenterSpatialCrop": "is cropped to {roi_size} (in the dataset: crop)",
}
_PERCENTILES = (0.5, 99.5)
#: Arguments that are read; others, such as a device, may be whatever they are.
ARGUMENTS = frozenset({
    "axcodes", "spatial_size", "roi_size", "pixdim", "a_min", "a_max", "b_min", "b_max", "clip", "lower", "upper",
    "minv", "maxv", "subtrahend", "divisor", "nonzero", "channel_wise",
})  # fmt: skip


class Prepared:
    """What is known after each transform: fields of `suture.json`, notes, and what there are no words for."""

    def __init__(self) -> None:
        self.description: dict[str, Any] = {}
        self.notes: list[str] = []
        self.unsaid: list[str] = []

    def add(self, target: str, arguments: Mapping[str, Any]) -> None:
        """Take one transform, in the order of the bundle, by its name in MONAI and its arguments."""
        name = re.sub(r"(?:d|D|Dict)$", "", target.rpartition(".")[2])
        if name in _PASSIVE:
            return
        if name in _BY_THE_DATA:
            self.notes.append(f"before this network, each image {_BY_THE_DATA[name].format_map(_Plain(arguments))}")
        elif name == "Spacing":
            self._spacing(arguments.get("pixdim"))
        elif "mean" in self.description or (done := self._intensity(name, arguments)) is None:
            self.unsaid.append(f"each image passes {name} of MONAI")
        elif done:
            self.unsaid.append(done)

    def _spacing(self, pixdim: Any) -> None:
        sizes = pixdim if isinstance(pixdim, list) else [pixdim]
        if sizes and all(isinstance(size, int | float) and size > 0 for size in sizes):
            self.description["spacing"] = [float(size) for size in sizes]
        else:
            self.notes.append(f"before this network, each image is resampled to {pixdim} (in the dataset: spacing)")

    def _intensity(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """Return what there are no words for, "" where all is said, None for a transform that is not known."""
        at = {"b_min": 0.0, "b_max": 1.0, **{key: value for key, value in arguments.items() if value is not None}}
        if name == "ScaleIntensityRange" and "a_min" in at and "a_max" in at:
            self._range(at)
            if (at["a_min"], at["a_max"]) == (0, 255):  # what unsigned bytes hold: there is nothing beyond
                return ""
            self.notes.append(f"in the dataset: intensity = [{at['a_min']}, {at['a_max']}]")
            return "" if at.get("clip") else f"values beyond {at['a_min']} to {at['a_max']} are kept"
        if name == "ScaleIntensityRangePercentiles":
            self._range(at)
            usual = (at.get("lower"), at.get("upper")) == _PERCENTILES and at.get("clip") is True
            ends = f"{at.get('lower')}th and {at.get('upper')}th percentile"
            return "" if usual else f"each image is scaled from its own {ends} onto {at['b_min']} to {at['b_max']}"
        if name == "ScaleIntensity":
            return f"each image is scaled from its own range onto {at.get('minv', 0.0)} to {at.get('maxv', 1.0)}"
        if name == "NormalizeIntensity":
            return self._normal(at)
        return None

    def _range(self, at: Mapping[str, Any]) -> None:
        self.description["value_range"] = (float(at["b_min"]), float(at["b_max"]))

    def _normal(self, at: Mapping[str, Any]) -> str:
        mean, std = at.get("subtrahend"), at.get("divisor")
        if mean is None or std is None or at.get("nonzero"):
            where = " where it is not zero" if at.get("nonzero") else ""
            each = "each of its channels" if at.get("channel_wise") else "each image"
            return f"{each} is standardised by its own mean and deviation{where}"
        self.description |= {name: _numbers(value) for name, value in (("mean", mean), ("std", std))}
        return ""


def _numbers(value: Any) -> list[float]:
    return [float(number) for number in (value if isinstance(value, list) else [value])]


class _Plain(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "what the bundle says"
