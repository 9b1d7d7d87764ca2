"""A model as people use it: it names what it sees, in images as they lie in files or arrays, or in rows of a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_contract.files import telling, write_text
from suture_contract.model.format import METADATA, MODEL
from suture_contract.model.metadata import InputSpec, ModelMetadata
from suture_stitching.portable.runtime import PortableModel, write
from suture_stitching.preparation import Preparation, files_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from suture_stitching.formats.mlflow import MlflowExported
    from suture_stitching.formats.monai_bundle import BundleExported
    from suture_stitching.formats.onnx import OnnxExported

#: Files, an array `(N, C, *spatial)` or one sample of it, or a table with the model's columns.
Samples: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[Any] | Tensor | DataFrame"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample: the most probable label, or every label's probability where several hold."""

    label: str
    probability: float
    #: By label; of a multilabel model each for itself.
    probabilities: Mapping[str, float]
    #: The file it was read from.
    file: str | None = None

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        return {"file": self.file, "label": self.label, "probability": self.probability, **self.probabilities}


class LoadedModel(nn.Module):
    """A model with what is known of it: call it with what its network reads, or let `predict` prepare samples.

    `model` gives the outputs that `metadata` describes; `portable` is the file's own network.
    """

    def __init__(self, model: nn.Module, portable: PortableModel, metadata: ModelMetadata) -> None:
        super().__init__()
        self.model, self.metadata = model, metadata
        self._portable = (portable,)  # not a second child: its tensors are counted once

    def forward(self, *inputs: Tensor) -> Any:
        """Return the network's outputs, such as `(N, labels)`."""
        return self.model(*inputs)

    @property
    def portable(self) -> PortableModel:
        """The network as it lies in the file."""
        return self._portable[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the outputs stand for, in order; none of a regression."""
        return self.metadata.labels or ()

    @property
    def input(self) -> InputSpec:
        """What the network reads; raises `SutureError` `predict.inputs` where it has several inputs."""
        if len(self.metadata.inputs) > 1:
            raise SutureError("predict.inputs", "the model has several inputs", hint="call it with a tensor for each")
        return next(iter(self.metadata.inputs.values()))

    def predict(
        self, samples: Samples, *, batch_size: int = 32, intensity: tuple[float, float] | None = None
    ) -> list[Prediction]:
        """Return what the model says of each sample, as a classifier.

        `samples` are images in files (one path or several), an array or tensor `(N, C, *spatial)` or `(C, *spatial)`,
        a list of such samples, rows `(N, F)` of a table, or a `pandas.DataFrame` with the model's columns.

        Whole numbers of 8 or 16 bits in images are scaled onto the model's `value_range`, by default (0, 1). Other
        values, such as Hounsfield units, must lie within it. With `intensity` the stored values between its two are
        mapped onto that range, and clipped, as a dataset's description has it. Then comes the model's `preprocessing`.
        Sizes and channels must be those that the model reads: nothing is cut or stretched unseen.

        Raises `SutureError`: `predict.task` where the model is no classifier, `predict.shape`, `predict.range`,
        `predict.columns`, `predict.intensity`, `dataset.unreadable_image`, and `dataset.few_bits` where all images have
        12 of 16 bits, say, and would be nearly black.
        """
        if self.metadata.task not in ("classification", "multilabel"):
            raise SutureError("predict.task", f"the model does {self.metadata.task}", hint="call it with tensors")
        files, preparation = files_of(samples), Preparation(self.input, intensity)
        prepared = iter(preparation.array(samples)) if files is None else preparation.images(files)
        predictions: list[Prediction] = []
        for batch in _batches(prepared, batch_size):
            names = files[len(predictions) :] if files is not None else [None] * len(batch)
            for probabilities, name in zip(self._probabilities(batch).tolist(), names, strict=False):
                best = int(np.argmax(probabilities))
                by_label = dict(zip(self.labels, probabilities, strict=True))
                predictions.append(Prediction(self.labels[best], probabilities[best], by_label, name))
        preparation.check_bits()
        return predictions

    def to_onnx(self, path: str | os.PathLike[str], *, tolerance: float = 1e-4) -> OnnxExported:
        """Write the network as ONNX, checked beside this one; needs the extra `onnx`. See `export_onnx`.

        Raises `SutureError`, `predict.prior` where the model was loaded with a `label_prior`: the file has none.
        """
        self._refuse_shares_of_labels("as ONNX")
        with needs("torch,onnx"):
            from suture_stitching.formats.onnx import export_onnx

        return export_onnx(self.portable, path, metadata=self.metadata, tolerance=tolerance)

    def to_mlflow(self, folder: str | os.PathLike[str]) -> MlflowExported:
        """Write the model for `mlflow.pyfunc` to `folder`, which must be new; needs the extra `mlflow`.

        See `export_mlflow`. Raises `SutureError`, `predict.prior` as `to_onnx` does.
        """
        self._refuse_shares_of_labels("for MLflow")
        with needs("torch,mlflow"):
            from suture_stitching.formats.mlflow import export_mlflow

        with self._as_files(folder) as files:
            return export_mlflow(files, folder)

    def to_bundle(self, folder: str | os.PathLike[str]) -> BundleExported:
        """Write the model as a MONAI bundle to `folder`, which must be new; needs the extra `imaging`.

        See `export_bundle`. Raises `SutureError`, `predict.prior` as `to_onnx` does.
        """
        self._refuse_shares_of_labels("as a MONAI bundle")
        with needs("torch,imaging"):
            from suture_stitching.formats.monai_bundle import export_bundle

        with self._as_files(folder) as files:
            return export_bundle(files, folder)

    def _refuse_shares_of_labels(self, how: str) -> None:
        if self.model is not self.portable:
            raise SutureError(
                "predict.prior",
                f"shares of labels are not written {how}: it would give other probabilities",
                where="label_prior",
                hint="load the model without label_prior, and correct its probabilities where they are used",
            )

    @contextmanager
    def _as_files(self, beside: str | os.PathLike[str]) -> Iterator[Path]:
        """Give a folder with the model's two files, on the disk that has to hold them anyway."""
        folder = Path(beside).absolute().parent
        with telling(folder, code="file.unwritable"):
            folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".suture-model-", dir=folder) as files:
            write(self.portable.graph, self.portable.tensors, Path(files) / MODEL)
            write_text(Path(files) / METADATA, self.metadata.to_json())
            yield Path(files)

    def _probabilities(self, x: Tensor) -> Tensor:
        """Return probabilities `(N, labels)`."""
        output = next(iter(self.metadata.outputs.values()))
        with torch.inference_mode():
            values: Tensor = self(x.to(self._device)).double().cpu()
        if self.metadata.task == "multilabel":
            return values.sigmoid() if output.format == "logits" else values
        if output.num_channels < len(self.labels):  # one channel for two labels: the second one's
            second = values.sigmoid() if output.format == "logits" else values
            return torch.cat([1 - second, second], 1)
        return values.softmax(1) if output.format == "logits" else values

    @property
    def _device(self) -> torch.device:
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    def _repr_html_(self) -> str:
        spec, metadata = self.input, self.metadata
        sizes = " x ".join("any" if size is None else str(size) for size in (spec.num_channels, *spec.spatial_shape))
        lines = {
            "task": metadata.task,
            "labels": ", ".join(self.labels),
            "reads": f"{spec.format} {sizes}" + (f", values {spec.value_range}" if spec.value_range else ""),
            "license": metadata.license,
            "description": metadata.description or "",
        }
        rows = Markup("").join(Markup("<tr><th>{}</th><td>{}</td></tr>").format(*line) for line in lines.items())
        return str(Markup("<table>{}</table>").format(rows))


def _batches(samples: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Yield batches; a sample of another size than the one before begins another."""
    batch: list[Tensor] = []
    for sample in samples:
        if batch and (len(batch) == size or sample.shape != batch[0].shape):
            yield torch.stack(batch)
            batch = []
        batch.append(sample)
    if batch:
        yield torch.stack(batch)
