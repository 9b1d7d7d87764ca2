"""Networks of nnU-Net, timm and TorchXRayVision come in with their labels and what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.bundles import run, same
from torch import nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.portable.runtime import load
from suture_stitching.sources import of_module, open_source

PLANS: dict[str, Any] = {
    "dataset_name": "Dataset009_Spleen",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
            "patch_size": [32, 32], "spacing": [1.0, 1.0], "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False], "batch_dice": True,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3], [3, 3], [3, 3]], "strides": [[1, 1], [2, 2], [2, 2]],
                    "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        },
    },
    "foreground_intensity_properties_per_channel": {
        "0": {"max": 3000.0, "mean": 99.5, "median": 101.0, "min": -1000.0, "percentile_00_5": -41.0,
              "percentile_99_5": 176.0, "std": 39.5}
    },
}  # fmt: skip
DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1, "ignore": 2}, "numTraining": 41,
    "file_ending": ".nii.gz",
}  # fmt: skip
OLDER = {
    "patch_size": [32, 32], "spacing": [1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [True], "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4,
    "unet_max_num_features": 8, "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1],
    "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]], "conv_kernel_sizes": [[3, 3], [3, 3], [3, 3]],
    "num_pool_per_axis": [2, 2],
}  # fmt: skip


def results(folder: Path, plans: dict[str, Any] = PLANS, folds: tuple[str, ...] = ("fold_0",)) -> tuple[Path, Any]:
    """Write a results folder as nnU-Net v2 does, its network made by nnU-Net's own library."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    torch.manual_seed(0)
    network = unet.PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv2d, [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]], [1, 1, 1], 2, [1, 1], True,
        nn.InstanceNorm2d, {"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )  # fmt: skip
    place = folder / "nnUNetTrainer__nnUNetPlans__2d"
    place.mkdir(parents=True)
    (place / "plans.json").write_text(json.dumps(plans))
    (place / "dataset.json").write_text(json.dumps(DATASET))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    for fold in folds:
        (place / fold).mkdir()
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.9)], "dice_per_class_or_region": [[np.float64(0.9)]]},
            "_best_ema": np.float64(0.9),
            "current_epoch": 1000,
            "init_args": {
                "plans": plans, "configuration": "2d", "fold": 0, "dataset_json": DATASET,
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1),
        }  # fmt: skip
        torch.save(checkpoint, place / fold / "checkpoint_final.pth")
    network.decoder.deep_supervision = False
    return place, network.eval()


def test_results_of_nnunet_become_a_portable_model(tmp_path: Path) -> None:
    place, network = results(tmp_path)
    result = run(place, tmp_path / "out", "--license", "CC-BY-4.0")
    assert result.exit_code == 0, result.output
    assert "intensity = [-41, 176]" in result.output
    assert same(network, tmp_path / "out", 1, 32, 32)
    written = ModelMetadata.read(tmp_path / "out" / "suture.json")
    image = written.inputs["image"]
    assert (written.task, written.labels) == ("segmentation", ("background", "spleen"))
    assert (image.value_range, image.spacing, image.modality) == ((-41.0, 176.0), (1.0, 1.0), "CT")
    assert image.preprocessing is not None
    assert (image.preprocessing.mean, image.preprocessing.std) == ((99.5,), (39.5,))


def test_a_fold_is_named_where_there_are_several(tmp_path: Path) -> None:
    place, network = results(tmp_path, folds=("fold_0", "fold_1"))
    with pytest.raises(SutureError, match="fold_0, fold_1") as refused:
        open_source(place)
    assert refused.value.code == "source.fold"
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(open_source(place / "fold_1").module(x), network(x))


def test_older_plans_of_nnunet_and_its_standardising(tmp_path: Path) -> None:
    place, network = results(tmp_path, {**PLANS, "configurations": {"2d": OLDER}})
    source = open_source(place)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(source.module(x), network(x))
    assert source.unsaid == ["channel 0 of a volume is standardised by its own mean and deviation inside the body"]


def test_plans_name_networks_of_nnunet_alone(tmp_path: Path) -> None:
    plans = json.loads(json.dumps(PLANS))
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"
    place, _ = results(tmp_path, plans)
    with pytest.raises(SutureError, match=r"os\.system") as refused:
        open_source(place)
    assert refused.value.code == "source.network"


def test_timm_says_what_its_networks_read(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    network = timm.create_model("test_vit", num_classes=2).eval()
    source = of_module(network)
    assert source.shape == network.pretrained_cfg["input_size"]
    assert source.description["mean"] == list(network.pretrained_cfg["mean"])


def test_torchxrayvision_gives_its_named_pathologies(tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision", exc_type=ImportError)
    network = xrv.models.DenseNet(num_classes=3, block_config=(1, 1), op_threshs=torch.tensor([0.3, float("nan"), 0.6]))
    network.eval().targets = ["Effusion", "Edema", "Mass"]
    network.classifier.weight.data.mul_(1e-3)  # random weights are sure of every image
    source = of_module(network)
    assert source.description["labels"] == ["Effusion", "Mass"]
    x = source.example()
    torch.testing.assert_close(source.module(x), network(x)[:, [0, 2]])
    from suture.bundle import export_model

    metadata = export_model(source.module, x, tmp_path / "m.safetensors", **source.described(license="Apache-2.0"))
    assert (metadata.task, metadata.labels) == ("multilabel", ("Effusion", "Mass"))
    torch.testing.assert_close(load(tmp_path / "m.safetensors")(x), source.module(x))
