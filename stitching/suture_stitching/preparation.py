"""Samples as people have them, prepared as a model's `suture.json` says: images in files, arrays, rows of a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec
from suture_stitching.data.arrays import bits_error, full_scale, seldom_used, to_range
from suture_stitching.data.image_folder import read_image
from suture_stitching.data.samples import UNREADABLE
from suture_stitching.normalisation import prepared

if TYPE_CHECKING:
    from pandas import DataFrame

#: Images of 16 bits that take less than this part of them are of 12 or 14: one may be dark, all of a kind are not.
_LEAST = 4


class Preparation:
    """Turns samples into what a network reads; `where` they came from is what errors name.

    `intensity` are the stored values that become the ends of `value_range`; what lies beyond is clipped.
    """

    def __init__(self, spec: InputSpec, intensity: tuple[float, float] | None) -> None:
        no_image = spec.format == "table" or spec.dtype == "int64"
        if intensity is not None and (no_image or not intensity[0] < intensity[1]):
            raise SutureError(
                "predict.intensity",
                "intensity is of images and signals: two stored values, the smaller one first",
                where="intensity",
                hint="such as intensity=(0, 4095), or (-160, 240) for soft tissue in CT",
            )
        self._spec, self._intensity = spec, intensity
        #: The range of an image without a stated one, as in a dataset's description.
        self._range = spec.value_range or (0.0, 1.0)
        self._largest: dict[float, float] = {}

    def images(self, files: Iterable[str]) -> Iterator[Tensor]:
        """Yield images in files, each `(C, H, W)`."""
        return map(self._image, files)

    def array(self, samples: Any) -> Tensor:
        """Return samples `(N, C, *spatial)`, of an array, a list of such, or a data frame."""
        spec = self._spec
        if hasattr(samples, "columns"):
            samples = _columns(samples, spec)
        if isinstance(samples, list | tuple) and not samples:
            raise SutureError("predict.shape", "there are no samples", where="samples", hint="give one at least")
        try:
            if isinstance(samples, list | tuple):
                samples = np.stack([np.asarray(sample) for sample in samples])
            if isinstance(samples, np.ndarray):  # torch takes neither another byte order nor steps backwards
                backwards = any(step < 0 for step in samples.strides)
                samples = samples.astype(samples.dtype.newbyteorder("="), order="C", copy=backwards)
            values = torch.as_tensor(samples)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SutureError(
                "predict.shape",
                f"these are no samples of one size: {error}",
                hint="give paths, an array (N, C, *spatial), or a list of arrays that are as large as each other",
            ) from None
        if values.dim() == 1 + len(spec.spatial_shape):  # a single sample
            values = values[None]
        # Whole numbers that are tokens or columns of a table are what they are.
        images = spec.format != "table" and spec.dtype != "int64"
        if images and (self._intensity is not None or full_scale(_numpy_type(values)) is not None):
            top = full_scale(_numpy_type(values))
            stored = values.detach().cpu().float().numpy()
            values = torch.from_numpy(self._scaled(stored, None if top is None else (0.0, top)))
        return prepared(values, spec)

    def check_bits(self) -> None:
        """Raise `SutureError` `dataset.few_bits` where all images of this call use few of the bits they have.

        Scaled from all of them, they were nearly black.
        """
        for top, most in self._largest.items():
            kind = np.dtype(np.uint16 if top > 255 else np.uint8)
            bits = seldom_used(int(most), kind)
            if bits is not None and not (top > 255 and most > top / _LEAST):
                error = bits_error(bits, kind, "samples")
                raise SutureError(
                    error.code,
                    error.message,
                    where="samples",
                    hint=f"say which stored values become the ends of the range: intensity=(0, {2**bits - 1}), or, if "
                    f"they are that dark, intensity=(0, {top:g})",
                )

    def _scaled(self, values: NDArray[np.float32], stored: tuple[float, float] | None) -> NDArray[np.float32]:
        """Return stored values in the model's range; numbers that nothing scales stay."""
        if self._intensity is not None:
            return to_range(values, self._intensity, self._range, clip=True)
        if stored is None:
            return values
        if stored[1] > 1:  # yes or no has no bits to be left empty
            self._largest[stored[1]] = max(self._largest.get(stored[1], 0), float(values.max(initial=0)))
        return to_range(values, stored, self._range)

    def _image(self, file: str) -> Tensor:
        spec = self._spec
        if spec.format != "image" or len(spec.spatial_shape) != 2:
            kind = "volumes" if len(spec.spatial_shape) == 3 else "signals" if spec.spatial_shape else "tables"
            raise SutureError(
                "predict.shape",
                f"the model reads {kind}, no images in files",
                where=file,
                hint="read the file yourself, and give an array (N, C, *spatial); of a table a data frame",
            )
        if not Path(file).is_file():
            raise SutureError(
                UNREADABLE,
                "there is no such file",
                where=file,
                hint=f"a path is absolute, or seen from {Path.cwd()}",
            )
        try:
            values, stored = read_image(Path(file), file, spec.num_channels)
        except SutureError as error:
            if error.code not in (UNREADABLE, "dataset.several_pages"):
                raise
            raise SutureError(
                error.code, error.message, where=file, hint="save the image that is meant anew, as PNG say"
            ) from None
        image = torch.from_numpy(np.ascontiguousarray(self._scaled(values, stored)))
        return prepared(image[None], spec.model_copy(update={"value_range": self._range}), file)[0]


def files_of(samples: Any) -> list[str] | None:
    """Return the paths of samples that lie in files, None of others."""
    if isinstance(samples, str | os.PathLike):
        return [os.fspath(samples)]
    if (
        isinstance(samples, list | tuple)
        and samples
        and all(isinstance(sample, str | os.PathLike) for sample in samples)
    ):
        return [os.fspath(sample) for sample in samples]
    return None


def _numpy_type(values: Tensor) -> np.dtype[Any]:
    """Return the type of a tensor's numbers as NumPy calls it; that of any other number where it has no name there."""
    kinds = {torch.bool: np.bool_, torch.uint8: np.uint8, torch.uint16: np.uint16}
    return np.dtype(kinds.get(values.dtype, np.float32))


def _columns(table: DataFrame, spec: InputSpec) -> NDArray[Any]:
    """Return the columns that the model names, in its order, as numbers."""
    names, own = spec.channels, [str(column) for column in table.columns]
    if names is None or not set(names) <= set(own):
        missing = "" if names is None else ", ".join(sorted(set(names) - set(own)))
        raise SutureError(
            "predict.columns",
            f"the table lacks columns: {missing}" if missing else "the model does not name its columns",
            hint="give an array with the columns in the model's order",
        )
    if twice := next((name for name in names if own.count(name) > 1), None):
        raise SutureError(
            "predict.columns", f"the table has several columns '{twice}'", hint="keep the one that is meant"
        )
    read = table.iloc[:, [own.index(name) for name in names]]
    moment = next((str(column) for column, kind in read.dtypes.items() if kind.kind in "mM"), None)
    if moment is not None:
        raise SutureError(
            "predict.columns", f"the column '{moment}' holds dates or times, no numbers", hint="compute as in training"
        )
    try:
        numbers: NDArray[np.float64] = read.to_numpy(dtype=np.float64, na_value=np.nan)
        return numbers
    except (TypeError, ValueError) as error:
        raise SutureError(
            "predict.columns", f"the columns hold more than numbers: {error}", hint="code texts as in training"
        ) from None


__all__ = ["Preparation", "files_of"]
