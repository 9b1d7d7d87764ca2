"""Bundles of MONAI come in with what their files say, and without running anything of theirs."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.bundles import CT, NETWORK, bundle, nets, run, same, save_script, scripted, spleen

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.sources import open_source


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
    from monai.bundle import ConfigParser

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
    where = bundle(tmp_path / "spleen", nets().UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch"))
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
