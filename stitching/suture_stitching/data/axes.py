"""Which axis of an array is which: said by the site, or plain from what the models read; never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.spec import DatasetSpec

#: Numbers of channels that images have.
_COLOURS = (1, 3)
#: More channels than these, and an axis is rather one of space.
_FEW = 4
#: How many times longer than wide a grey image may be and still be plainly one.
_LONG = 2
_SPACE = {1: ("T",), 2: ("H", "W"), 3: ("D", "H", "W")}


def channels_first(array: NDArray[Any], spec: DatasetSpec) -> tuple[NDArray[Any], list[str]]:
    """Return a view `(N, C, *spatial)` of samples as stored, and what was decided, in words.

    Raises `SutureError` `dataset.axes` where neither `axes` nor the models' input say which axis is which.
    """
    axes = _axes(array, spec)
    if axes is None:
        return array, []
    notes = [] if axes.startswith("NC") or "C" not in axes else [f"axes read as {axes}"]
    return _turned(array, axes), notes


def _turned(array: NDArray[Any], axes: str) -> NDArray[Any]:
    if "C" not in axes:
        return array[:, None]
    return np.moveaxis(array, axes.index("C"), 1)


def _axes(array: NDArray[Any], spec: DatasetSpec) -> str | None:
    """Return a letter per axis; None where the array is what it should be: a table, or `(N, C, *spatial)`."""
    shape = array.shape
    if spec.axes is not None:
        axes = spec.axes if spec.axes.startswith("N") else f"N{spec.axes}"
        if len(axes) != len(shape):
            raise _open(shape, spec, f'axes = "{spec.axes}" names {len(axes)} axes')
        return axes
    reads = spec.input
    if len(shape) < 2:
        raise _open(shape, spec, "there is one number per sample")
    if reads is not None and reads.format != "table" and reads.spatial_shape:
        return _as_read(shape, spec, reads.num_channels, reads.spatial_shape)
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        # Pictures are about as wide as high; a signal is far longer than it has channels.
        if array.dtype not in (np.uint8, np.uint16, np.bool_) and max(shape[1:]) >= _LONG * min(shape[1:]):
            raise _open(shape, spec, "these may be grey images or signals")
        return "NHW"
    first, last = shape[1], shape[-1]
    if len(shape) == 4:
        if first in _COLOURS:
            return None
        if last in _COLOURS:
            return "NHWC"
        raise _open(shape, spec, "these may be images with many channels, or volumes")
    if len(shape) == 5:
        if first <= _FEW:
            return None
        if last <= _FEW:
            return "NDHWC"
    raise _open(shape, spec, "it is not plain which axis is which")


def _as_read(shape: Sequence[int], spec: DatasetSpec, channels: int, sizes: Sequence[int | None]) -> str | None:
    """Return the axes of samples for models that read `channels` of these `sizes`."""
    space = "".join(_SPACE[len(sizes)])
    if len(shape) == len(sizes) + 1:
        if channels == 1 or (channels == 3 and len(sizes) == 2):
            return f"N{space}"
        raise _open(shape, spec, f"there is no axis of the {channels} channels that the models read")
    if len(shape) != len(sizes) + 2:
        raise _open(shape, spec, f"the models read {len(sizes)} spatial axes")
    ways = {f"NC{space}": (shape[1], shape[2:]), f"N{space}C": (shape[-1], shape[1:-1])}
    wanted = [way for way, (own, _) in ways.items() if own == channels]
    if not wanted and len(sizes) == 2:  # grey and colour are converted
        wanted = [way for way, (own, _) in ways.items() if own in _COLOURS and channels in _COLOURS]
    exact = [way for way in wanted if all(b in (None, a) for a, b in zip(ways[way][1], sizes, strict=True))]
    if (len(wanted) > 1 and len(exact) != 1) or not wanted:
        problem = "more than one axis may be the channels" if wanted else f"no axis has {channels} channels"
        raise _open(shape, spec, problem)
    return (exact if len(wanted) > 1 else wanted)[0]


def _open(shape: Sequence[int], spec: DatasetSpec, problem: str) -> SutureError:
    size = " x ".join(map(str, shape[1:]))
    return SutureError(
        "dataset.axes",
        f"samples have the size {size}: {problem}",
        where=f"{spec.path}: {spec.columns.images}",
        hint='name the axes: axes = "NCHW" for images with channels, "NHW" for grey ones, "NDHW" for volumes, "NCT" or '
        '"NTC" for signals; tables are (N, C)',
    )


__all__ = ["channels_first"]
