"""Networks come in as other tools keep them, with what their files say, and without running anything of theirs."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, init_bundle
from monai.networks import nets
from torch import Tensor, nn
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.portable.runtime import load
from suture_stitching.sources import of_module, open_source

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


def spleen() -> nn.Module:
    torch.manual_seed(0)
    return nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch").eval()


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


def test_a_bundle_becomes_a_portable_model(tmp_path: Path) -> None:
    network = spleen()
    where = bundle(tmp_path / "spleen", network)
    result = run(where, tmp_path / "out", "--license", "Apache-2.0")
    assert result.exit_code == 0, result.output
    assert "intensity = [-57, 164]" in result.output
    assert same(network, tmp_path / "out", 1, 16, 16, 16)
    written = ModelMetadata.read(tmp_path / "out" / "suture.json")
    image = written.inputs["image"]
    assert (written.task, written.labels) == ("segmentation", ("background", "spleen"))
    assert (image.modality, image.value_range, image.spacing) == ("CT", (0.0, 1.0), (1.5, 1.5, 2.0))
    assert (image.spatial_shape, image.channels) == ((16, 16, 16), None)
    assert written.outputs["prediction"].format == "logits"
    assert written.eval_metrics == {"mean_dice": 0.96}
    assert (written.authors, written.intended_use) == (("A. Hospital",), "Research")
    # MONAI itself makes the same network of that configuration.
    parser = ConfigParser()
    parser.read_config(where / "configs" / "inference.json")
    theirs = parser.get_parsed_content("network_def")
    theirs.load_state_dict(torch.load(where / "models" / "model.pt", weights_only=True))
    assert same(theirs.eval(), tmp_path / "out", 1, 16, 16, 16)


def test_a_bundle_in_a_zip_of_the_zoo(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    bundle(tmp_path / "zoo" / "spleen", spleen())
    archive = shutil.make_archive(str(tmp_path / "spleen_v0.1.0"), "zip", tmp_path / "zoo")
    source = open_source(archive)
    assert source.shape == (1, 16, 16, 16)
    x = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(source.module(x), spleen()(x))


def test_a_bundle_with_torchscript_alone(tmp_path: Path) -> None:
    network = spleen()
    where = bundle(tmp_path / "spleen", None, definition={"_target_": "scripts.mine.Net"})
    save_script(scripted(network, torch.rand(1, 1, 16, 16, 16)), where / "models" / "model.ts")
    result = run(where, tmp_path / "out", "--license", "Apache-2.0")
    assert result.exit_code == 0, result.output
    assert same(network, tmp_path / "out", 1, 16, 16, 16)


@pytest.mark.parametrize(
    ("definition", "names"),
    [
        ({**NETWORK, "_target_": "scripts.mine.Net"}, "scripts.mine.Net"),
        ({**NETWORK, "_target_": "os.system"}, "os.system"),
        ({**NETWORK, "_target_": "monai.networks.nets.__builtins__.eval"}, "eval"),
        ({**NETWORK, "strides": "$__import__('os').system('touch hacked')"}, "runs Python"),
        ({**NETWORK, "strides": {"_target_": "subprocess.run", "args": "ls"}}, "subprocess.run"),
        ({**NETWORK, "strides": "@strides_of_elsewhere"}, "strides_of_elsewhere"),
        ({**NETWORK, "strides": "@network_def::strides"}, "lead back"),
        ({**NETWORK, "strides": "%other.json::strides"}, "another file"),
    ],
)
def test_no_code_of_a_bundle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, definition: Any, names: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SutureError) as refused:
        open_source(bundle(tmp_path / "spleen", spleen(), definition=definition))
    assert refused.value.code == "source.config"
    assert names in str(refused.value)
    assert "MODULE:NAME" in str(refused.value.hint)
    assert not (tmp_path / "hacked").exists()


class Hostile:
    def __reduce__(self) -> Any:
        return (Path("hacked").touch, ())


def test_a_pickle_in_a_bundle_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = bundle(tmp_path / "spleen", spleen())
    torch.save({"state_dict": spleen().state_dict(), "more": Hostile()}, where / "models" / "model.pt")
    with pytest.raises(SutureError) as refused:
        open_source(where)
    assert refused.value.code == "source.checkpoint"
    (where / "models" / "model.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(SutureError):
        open_source(where)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3, "loss": np.float64(0.1), "history": np.ones(3)},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    ],
    ids=["checkpoint", "parallel", "compiled"],
)
def test_weights_as_training_scripts_keep_them(tmp_path: Path, wrapped: Any) -> None:
    where = bundle(tmp_path / "spleen", spleen())
    torch.save(wrapped(spleen().state_dict()), where / "models" / "model.pt")
    x = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(open_source(where).module(x), spleen()(x))


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    where = bundle(tmp_path / "spleen", nets.UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch"))
    with pytest.raises(SutureError, match="34 are of no layer, such as model") as refused:
        open_source(where)
    assert refused.value.code == "source.weights"


@pytest.mark.parametrize(
    ("transform", "word"),
    [
        ({"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}, "where it is not zero"),
        ({"_target_": "ScaleIntensityd"}, "its own range"),
        ({"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 100, "b_min": 0, "b_max": 1}, "are kept"),
        ({"_target_": "HistogramNormalized"}, "HistogramNormalize"),
    ],
)
def test_preprocessing_without_words_is_an_error_until_somebody_vouches(
    tmp_path: Path, transform: dict[str, Any], word: str
) -> None:
    where = bundle(tmp_path / "spleen", spleen(), transforms=[*CT[:4], {**transform, "keys": "image"}])
    refused = run(where, tmp_path / "out", "--license", "Apache-2.0")
    assert refused.exit_code != 0
    assert "source.preprocessing" in refused.output
    assert word in " ".join(refused.output.split())
    assert not (tmp_path / "out").exists()
    vouched = run(where, tmp_path / "out", "--license", "Apache-2.0", "--value-range", "-4,4")
    assert vouched.exit_code == 0, vouched.output
    written = ModelMetadata.read(tmp_path / "out" / "suture.json")
    assert word in str(written.limitations)
    assert written.inputs["image"].value_range == (-4.0, 4.0)


def test_normalisation_by_fixed_numbers_is_carried(tmp_path: Path) -> None:
    normal = {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": [0.5], "divisor": [0.25]}
    source = open_source(bundle(tmp_path / "spleen", spleen(), transforms=[*CT, normal]))
    assert (source.description["mean"], source.description["std"], source.unsaid) == ([0.5], [0.25], [])
    assert float(source.example().min()) >= -2
    assert float(source.example().max()) <= 2


def test_overlapping_labels_are_refused(tmp_path: Path) -> None:
    where = bundle(tmp_path / "brats", spleen())
    config = where / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"softmax": true', '"sigmoid": true'))
    with pytest.raises(SutureError, match="overlap") as refused:
        open_source(where)
    assert refused.value.code == "source.task"


def test_torchscript_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    save_script(scripted(network, torch.rand(1, 1, 8, 8)), tmp_path / "net.pt")
    unsaid = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT")
    assert "source.shape" in unsaid.output
    wrong = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT", "--shape", "1,9,9")
    assert "source.script" in wrong.output
    result = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT", "--shape", "1,8,8")
    assert result.exit_code == 0, result.output
    assert same(network, tmp_path / "out", 1, 8, 8)


def test_torchscript_that_touches_files_is_refused(tmp_path: Path) -> None:
    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_file("/etc/hostname", False, 1)

    save_script(scripted_source(Reader()), tmp_path / "net.pt")
    with pytest.raises(SutureError, match="aten::from_file") as refused:
        open_source(tmp_path / "net.pt", (4,))
    assert refused.value.code == "source.script"


def scripted_source(network: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network)


def test_weights_without_a_network(tmp_path: Path) -> None:
    torch.save(spleen().state_dict(), tmp_path / "model.pt")
    with pytest.raises(SutureError) as refused:
        open_source(tmp_path / "model.pt")
    assert (refused.value.code, "MODULE:NAME" in str(refused.value.hint)) == ("source.code", True)
    (tmp_path / "notes.txt").write_text("no network")
    with pytest.raises(SutureError, match="no file of a kind"):
        open_source(tmp_path / "notes.txt")


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
