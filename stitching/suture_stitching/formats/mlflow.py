"""A portable model, stitched ensembles included, as an MLflow model: `mlflow.pyfunc` loads and serves it.

    export_mlflow("stitched", "stitched-mlflow")
    mlflow.pyfunc.load_model("stitched-mlflow").predict(images)

The folder holds the model's two files as they are, and the code of Suture that runs them; nothing is pickled. Where it
is loaded, torch, numpy, pydantic and safetensors are all it needs. Needs the extra `mlflow`.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import suture_contract
import suture_stitching
from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_contract.files import write_text
from suture_contract.model.format import METADATA, MODEL, check_against, check_file, find_model
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.formats.folder import making
from suture_stitching.formats.trials import trial_batches
from suture_stitching.normalisation import prepared
from suture_stitching.objectives import objective_of
from suture_stitching.portable.export import relative_difference
from suture_stitching.portable.runtime import PortableModel, load

#: What runs a portable model, at the versions that it was tried with.
_NEEDS = ("torch", "numpy", "pydantic", "safetensors")
_SAME = 1e-5


@dataclass(frozen=True)
class MlflowExported:
    """A written MLflow model: what it reads and gives, and the worst difference seen, relative to the outputs."""

    path: Path
    inputs: str
    outputs: str
    difference: float


def export_mlflow(model: str | os.PathLike[str], folder: str | os.PathLike[str]) -> MlflowExported:
    """Write the portable model `model`, a file or a folder with its `suture.json`, as an MLflow model to `folder`.

    `predict` takes a batch `(N, C, *spatial)` before anybody's preprocessing, or of a table whose columns have names a
    data frame. It gives probabilities `(N, labels, *spatial)`, or values of a regression. The folder is loaded by
    MLflow and compared before it gets its name. Raises `SutureError` (`model.*`, `metadata.*`, `out.exists`,
    `mlflow.differs`).
    """
    with needs("mlflow"), _quietly():
        import mlflow.pyfunc
        import pandas  # noqa: F401  # mlflow-skinny leaves it out, and needs it here
    path = find_model(model)
    metadata = ModelMetadata.read(path.with_name(METADATA))
    check_against(check_file(path), metadata, where=str(path))
    own = Predictor(load(path), metadata)
    signature = _signature(own)
    with making(Path(folder)) as work:
        data = work.with_name("data")
        data.mkdir()
        shutil.copyfile(path, data / MODEL)
        write_text(data / METADATA, metadata.to_json())
        with _quietly():
            mlflow.pyfunc.save_model(
                str(work),
                loader_module=__name__,
                data_path=str(data),
                code_paths=[str(Path(str(package.__file__)).parent) for package in (suture_contract, suture_stitching)],
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _NEEDS],
                signature=signature,
                metadata={"task": metadata.task, "labels": list(metadata.labels or ())},
            )
            difference = _compared(own, mlflow.pyfunc.load_model(str(work)))
        for cache in work.rglob("__pycache__"):
            shutil.rmtree(cache)
    return MlflowExported(Path(folder), str(signature.inputs), str(signature.outputs), difference)


class Predictor:
    """What MLflow calls: data in, probabilities of the labels or values out."""

    def __init__(self, model: PortableModel, metadata: ModelMetadata) -> None:
        self.model, self.metadata = model, metadata
        self.input = next(iter(metadata.inputs.values()))
        self._objective = objective_of([metadata], metadata.labels or ())

    def predict(self, data: Any, params: object = None) -> np.ndarray:
        """Return the output for a batch `(N, C, *spatial)`, or a data frame with the columns that the model names.

        Raises `SutureError`: `predict.shape`, and `predict.range` for values that the model does not read.
        """
        x = torch.as_tensor(np.array(data[list(self.input.channels or ())] if hasattr(data, "columns") else data))
        x = prepared(x, self.input)
        with torch.inference_mode():
            return self._objective.combine([self.model(x)], [0]).float().numpy()


def _load_pyfunc(path: str) -> Predictor:
    """Return the model in MLflow's folder of data; the name is MLflow's."""
    folder = Path(path)
    return Predictor(load(folder / MODEL), ModelMetadata.read(folder / METADATA))


def _example(own: Predictor, size: int) -> np.ndarray:
    """Return random inputs in the range that the model reads; sizes that are free are those it can read."""
    *_, batch = trial_batches(own.model, None)
    low, high = own.input.value_range or (0.0, 1.0)
    values = np.random.default_rng(0).uniform(low, high, (size, *batch[0].shape[1:]))
    return values.astype(batch[0].numpy().dtype)


def _signature(own: Predictor) -> Any:
    """Return MLflow's signature: named columns of a table, otherwise tensors with free sizes as -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    example = _example(own, 2)
    spec, output = own.input, own.predict(example)
    sizes = next(iter(own.metadata.outputs.values())).spatial_shape
    reads = (-1, spec.num_channels, *(size or -1 for size in spec.spatial_shape))
    columns = [ColSpec(DataType.double, name) for name in spec.channels or ()] if spec.format == "table" else []
    gives = (-1, output.shape[1], *(size or -1 for size in sizes))
    return ModelSignature(
        inputs=Schema(columns or [TensorSpec(example.dtype, reads)]), outputs=Schema([TensorSpec(output.dtype, gives)])
    )


def _compared(own: Predictor, theirs: Any) -> float:
    """Return the worst difference of what MLflow's model gives; raises `SutureError` `mlflow.differs`."""
    worst = 0.0
    for size in (1, 3):
        example: Any = _example(own, size)
        if own.input.format == "table" and own.input.channels:
            import pandas

            example = pandas.DataFrame(example.astype("float64"), columns=list(own.input.channels))
        want, have = (torch.from_numpy(np.asarray(side.predict(example))) for side in (own, theirs))
        worst = max(worst, relative_difference(want, have))
    if worst > _SAME:
        raise SutureError("mlflow.differs", f"what MLflow loads differs by {worst:.2g} (relative)", where="model")
    return worst


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep advice to other tools' developers out, and the way that modules are looked for as it was."""
    before = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = before
