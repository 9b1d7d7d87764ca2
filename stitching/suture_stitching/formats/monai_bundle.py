"""A portable model, stitched ensembles included, as a MONAI bundle that runs wherever MONAI does, without Suture.

    export_bundle("stitched", "stitched-bundle")
    monai.bundle.load("stitched-bundle", bundle_dir=".", load_ts_module=True)

`models/model.ts` is recorded from the graph of allowed operators. `configs/` says what it reads and gives, how an image
is prepared as far as `suture.json` says, and how its outputs are read. The portable model itself goes along. Needs the
extra `imaging`.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_contract.files import write_text
from suture_contract.model.format import METADATA, MODEL, check_against, check_file, find_model
from suture_contract.model.metadata import InputSpec, ModelMetadata
from suture_stitching.formats.folder import making
from suture_stitching.formats.trials import trial_batches
from suture_stitching.portable.export import relative_difference
from suture_stitching.portable.runtime import PortableModel, load

_SCRIPT = "model.ts"
_SAME = 1e-5


@dataclass(frozen=True)
class BundleExported:
    """A written MONAI bundle and the worst difference of its network, relative to the outputs."""

    path: Path
    difference: float


def export_bundle(model: str | os.PathLike[str], folder: str | os.PathLike[str]) -> BundleExported:
    """Write the portable model `model`, a file or a folder with its `suture.json`, as a MONAI bundle to `folder`.

    The recorded network is read back and compared at several batch sizes, and where sizes are free at several of those,
    before the folder gets its name. Raises `SutureError` (`model.*`, `metadata.*`, `out.exists`, `bundle.*`).
    """
    with needs("imaging"):
        from monai.data.torchscript_utils import load_net_with_metadata, save_net_with_metadata
    path = find_model(model)
    metadata = ModelMetadata.read(path.with_name(METADATA))
    check_against(check_file(path), metadata, where=str(path))
    network, name = load(path), Path(folder).absolute().name
    described = _metadata(metadata, name)
    batches = list(trial_batches(network, None))
    with making(Path(folder)) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what MONAI's bundles hold
        for part in ("configs", "models", "docs"):
            (work / part).mkdir(parents=True)
        script = _recorded(network, batches[0])
        save_net_with_metadata(script, str(work / "models" / _SCRIPT), meta_values=described)
        difference = _compared(network, load_net_with_metadata(str(work / "models" / _SCRIPT))[0], batches)
        shutil.copyfile(path, work / "models" / MODEL)
        write_text(work / "models" / METADATA, metadata.to_json())
        write_text(work / "configs" / "metadata.json", _json(described))
        write_text(work / "configs" / "inference.json", _json(_inference(metadata)))
        about = [described["description"], metadata.intended_use, metadata.limitations]
        write_text(work / "docs" / "README.md", "\n\n".join([f"# {name}", *filter(None, about)]) + "\n")
        write_text(work / "LICENSE", f"{metadata.license}\n")
    return BundleExported(Path(folder), difference)


def _json(content: object) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False) + "\n"


def _recorded(network: PortableModel, example: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises dozens of types for what TorchScript has no form for
        raise SutureError(
            "bundle.script",
            f"TorchScript has no form for it: {str(error).strip().partition(chr(10))[0][:200]}",
            where="models/model.ts",
            hint="run it as ONNX (suture export-onnx), with MLflow (suture export-mlflow), or by Suture itself",
        ) from error


def _compared(network: PortableModel, script: Any, batches: list[tuple[Tensor, ...]]) -> float:
    worst = 0.0
    with torch.no_grad():
        for inputs in batches:
            worst = max(worst, relative_difference(network(*inputs), script(*inputs)))
    if worst > _SAME:
        raise SutureError(
            "bundle.differs",
            f"recorded for TorchScript it differs by {worst:.2g} (relative), at most {_SAME:g} is allowed",
            where="models/model.ts",
            hint="run it as ONNX (suture export-onnx), with MLflow (suture export-mlflow), or by Suture itself",
        )
    return worst


def _metadata(metadata: ModelMetadata, name: str) -> dict[str, Any]:
    """Return `configs/metadata.json`, with the fields that MONAI's model zoo asks for."""
    (reads,), (gives,) = metadata.inputs.values(), metadata.outputs.values()
    labels = metadata.labels or ()
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by Suture"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {},
        "name": name,
        "task": metadata.task,
        "description": metadata.description or f"{metadata.task}: {', '.join(labels) or 'values'}",
        "authors": ", ".join(metadata.authors) or "not said",
        "copyright": "not said",
        "license": metadata.license,
        "intended_use": metadata.intended_use or "",
        "references": list(metadata.references),
        "eval_metrics": dict(metadata.eval_metrics or {}),
        "network_data_format": {
            "inputs": {"image": _tensor(reads, reads.value_range, reads.channels, reads.modality)},
            "outputs": {
                "pred": {
                    "type": "image" if metadata.task == "segmentation" else "probabilities",
                    "format": metadata.task,
                    "num_channels": gives.num_channels,
                    "spatial_shape": [size or "*" for size in gives.spatial_shape],
                    "dtype": "float32",
                    "value_range": [0, 1] if gives.format == "probabilities" else [],
                    "is_patch_data": False,
                    # One channel for two labels is the second one's.
                    "channel_def": {str(index): label for index, label in enumerate(labels[-gives.num_channels :])},
                }
            },
        },
    }


def _tensor(
    spec: InputSpec, value_range: tuple[float, float] | None, channels: tuple[str, ...] | None, modality: str | None
) -> dict[str, Any]:
    names = channels or [f"channel {index}" for index in range(spec.num_channels)]
    return {
        "type": "image",
        "format": spec.format,
        "modality": modality or "n/a",
        "num_channels": spec.num_channels,
        "spatial_shape": [size or "*" for size in spec.spatial_shape],
        "dtype": spec.dtype,
        "value_range": list(value_range or ()),
        "is_patch_data": False,
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }


def _inference(metadata: ModelMetadata) -> dict[str, Any]:
    """Return `configs/inference.json`: the recorded network between what `suture.json` says comes before and after."""
    (reads,), (gives,) = metadata.inputs.values(), metadata.outputs.values()
    before: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    if reads.spacing is not None and len(reads.spacing) == 3:
        before.append({"_target_": "Spacingd", "keys": "image", "pixdim": list(reads.spacing), "mode": "bilinear"})
    if reads.preprocessing is not None:
        mean, std = list(reads.preprocessing.mean), list(reads.preprocessing.std)
        normal = {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": mean, "divisor": std}
        before.append({**normal, "channel_wise": len(mean) > 1})
    before.append({"_target_": "EnsureTyped", "keys": "image", "dtype": f"$torch.{reads.dtype}"})
    after: list[dict[str, Any]] = []
    if gives.format == "logits":
        single = metadata.task == "multilabel" or gives.num_channels == 1
        after.append({"_target_": "Activationsd", "keys": "pred", "sigmoid" if single else "softmax": True})
    if metadata.task == "segmentation":
        how = {"threshold": 0.5} if gives.num_channels == 1 else {"argmax": True}
        after.append({"_target_": "AsDiscreted", "keys": "pred", **how})
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*')))",
        "network_def": f"$torch.jit.load(@bundle_root + '/models/{_SCRIPT}', map_location=@device)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": _inferer(metadata.task, reads),
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "evaluating": ["$@evaluator.run()"],
    }


def _inferer(task: str, reads: InputSpec) -> dict[str, Any]:
    """Return how a volume is read: in windows where the network reads one size of it."""
    if task == "segmentation" and reads.spatial_shape and all(reads.spatial_shape):
        return {"_target_": "SlidingWindowInferer", "roi_size": list(reads.spatial_shape), "overlap": 0.5}
    return {"_target_": "SimpleInferer"}
