"""Bundles of MONAI, and networks as other tools keep them, written for a test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from suture.cli.app import app
from suture_stitching.portable.runtime import load

METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "monai_version": "1.5.0",
    "task": "Spleen segmentation",
    "description": "Finds spleens in CT",
    "authors": "A. Hospital",
    "intended_use": "Research",
    "data_source": "Task09_Spleen",
    "eval_metrics": {"mean_dice": 0.96},
    "references": ["Xia, Yingda, et al."],
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1,
                "spatial_shape": [16, 16, 16], "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image", "format": "segmentation", "num_channels": 2, "spatial_shape": [16, 16, 16],
                "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
                "channel_def": {"0": "background", "1": "spleen"},
            }
        },
    },
}  # fmt: skip
CT = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1,
     "clip": True},
    {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
]  # fmt: skip
NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "@classes",
    "channels": ["@width", "$@width * 2"], "strides": [2], "num_res_units": 1, "norm": "batch",
}  # fmt: skip


def nets() -> Any:
    """Return MONAI's networks. To import them takes seconds, in each process that collects tests."""
    from monai.networks import nets

    return nets


def spleen() -> nn.Module:
    torch.manual_seed(0)
    return nets().UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch").eval()


def bundle(
    folder: Path, network: nn.Module | None, *, definition: Any = None, transforms: Any = CT, **metadata: Any
) -> Path:
    """Write a bundle by MONAI's own `init_bundle`, with its usual inference.json around `transforms`."""
    inference = {
        "imports": ["$import glob"],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "width": 4,
        "classes": 2,
        "spacing": [1.5, 1.5, 2],
        "network_def": NETWORK if definition is None else definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
        "evaluating": ["$@evaluator.run()"],
    }
    from monai.bundle import init_bundle  # it takes seconds, in each process that collects tests

    init_bundle(folder, network=network, metadata_str={**METADATA, **metadata}, inference_str=inference)
    return folder


def scripted(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what hospitals keep
        return torch.jit.trace(network, example)


def save_script(script: torch.jit.ScriptModule, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script.save(str(path))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def same(network: nn.Module, folder: Path, *shape: int) -> bool:
    x = torch.rand(3, *shape)
    with torch.no_grad():
        return torch.allclose(load(folder / "model.safetensors")(x), network(x), atol=1e-5)


def scripted_source(network: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network)
