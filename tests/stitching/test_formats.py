"""Portable models go out to MLflow and as MONAI bundles, and their own tools load them and compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.networks import dataset, deep, member, plain
from torch import nn
from typer.testing import CliRunner

from suture.bundle import export_model
from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_stitching.fitting.fit import FitOptions
from suture_stitching.formats.monai_bundle import export_bundle
from suture_stitching.local import stitch
from suture_stitching.portable.runtime import load
from suture_stitching.sources import open_source


@pytest.fixture(scope="module")
def stitched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stitched ensemble, as `suture fit` leaves it."""
    folder = tmp_path_factory.mktemp("stitched")
    for name, network, seed in (("north", plain(), 1), ("south", deep(), 2)):
        made = member(network, folder, f"{name}/net", seed=seed)
        (folder / f"{name}.net.json").write_text(made.metadata.to_json())
    files = [folder / "north.net.safetensors", folder / "south.net.safetensors"]
    stitch(files, dataset(), folder / "out", options=FitOptions(refine=False, max_matches=1))
    return folder / "out"


def written(folder: Path, network: nn.Module, shape: tuple[int, ...], **description: Any) -> Path:
    folder.mkdir()
    metadata = export_model(
        network.eval(), torch.rand(2, *shape), folder / "model.safetensors", license="MIT", **description
    )
    (folder / "suture.json").write_text(metadata.to_json())
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_predicts_with_a_stitched_ensemble(stitched: Path, tmp_path: Path) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc")
    result = run("export-mlflow", stitched, tmp_path / "served")
    assert result.exit_code == 0, result.output
    model = load(stitched / "model.safetensors")
    x = np.random.default_rng(1).random((5, *model.graph.inputs[0].shape[1:]), dtype=np.float32)
    served = pyfunc.load_model(str(tmp_path / "served"))
    probabilities = served.predict(x)
    with torch.no_grad():
        np.testing.assert_allclose(probabilities, model(torch.from_numpy(x)), atol=1e-6)
    with pytest.raises(SutureError, match="missing or infinite"):
        served.predict(np.full_like(x, np.nan))
    again = run("export-mlflow", stitched, tmp_path / "served")
    assert "out.exists" in again.output
    assert [place.name for place in tmp_path.iterdir()] == ["served"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_takes_a_table_by_the_names_of_its_columns_where_suture_is_not(tmp_path: Path) -> None:
    pytest.importorskip("mlflow.pyfunc")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    scale = {"mean": [1.0, 2.0, 3.0], "std": [2.0, 2.0, 4.0]}
    folder = written(tmp_path / "ill", network, (3,), labels=["no", "yes"], channels=["age", "bp", "hr"], **scale)
    assert run("export-mlflow", folder, tmp_path / "served").exit_code == 0
    script = (
        "import sys, json, os\n"
        "sys.path = [place for place in sys.path if not os.path.isdir(os.path.join(place, 'suture_stitching'))]\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]\n"
        "import mlflow.pyfunc, pandas\n"
        "frame = pandas.DataFrame({'hr': [7.0, 1.0], 'more': [0, 0], 'age': [3.0, 5.0], 'bp': [4.0, 0.0]})\n"
        f"made = mlflow.pyfunc.load_model({str(tmp_path / 'served')!r}).predict(frame)\n"
        "import suture_stitching\n"
        "print(json.dumps([made.tolist(), suture_stitching.__file__]))\n"
    )
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    probabilities, where = json.loads(made.stdout.splitlines()[-1])
    rows = torch.tensor([[3.0, 4.0, 7.0], [5.0, 0.0, 1.0]])
    with torch.no_grad():
        want = network((rows - torch.tensor(scale["mean"])) / torch.tensor(scale["std"])).softmax(1)
    np.testing.assert_allclose(probabilities, want, atol=1e-6)
    assert Path(where).is_relative_to(tmp_path / "served")


@pytest.mark.filterwarnings("ignore")
def test_monai_runs_a_stitched_ensemble_as_a_bundle(stitched: Path, tmp_path: Path) -> None:
    import monai.bundle

    result = run("export-bundle", stitched, tmp_path / "joint")
    assert result.exit_code == 0, result.output
    network, metadata, _ = monai.bundle.load("joint", bundle_dir=tmp_path, load_ts_module=True)
    model = load(stitched / "model.safetensors")
    x = torch.rand(5, *model.graph.inputs[0].shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), atol=1e-6, rtol=1e-5)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    configs = tmp_path / "joint" / "configs"
    monai.bundle.verify_net_in_out(
        "network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        bundle_root=str(tmp_path / "joint"),
    )
    back = open_source(tmp_path / "joint")
    with torch.no_grad():
        torch.testing.assert_close(back.module(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_bundle_prepares_and_reads_a_segmentation_as_suture_json_says(tmp_path: Path) -> None:
    import monai.bundle

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))
    folder = written(
        tmp_path / "organs", network, (2, 8, 8, 8), task="segmentation", labels=["background", "liver", "spleen"],
        mean=[0.5, 1.0], std=[0.25, 2.0], spacing=[1.0, 1.0, 2.0], channels=["CT", "PET"], value_range=(0, 1),
    )  # fmt: skip
    export_bundle(folder, tmp_path / "bundle")
    parser = monai.bundle.ConfigParser()
    parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
    parser["bundle_root"] = str(tmp_path / "bundle")
    image = torch.rand(2, 8, 8, 8)
    normal = parser.get_parsed_content("preprocessing").transforms[3]({"image": image.clone()})["image"]
    scaled = (image - torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1)) / torch.tensor([0.25, 2.0]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(torch.as_tensor(normal), scaled)
    scores = parser.get_parsed_content("inferer")(scaled[None], parser.get_parsed_content("network"))
    with torch.no_grad():
        torch.testing.assert_close(scores, network(scaled[None]), atol=1e-5, rtol=1e-4)
    mask = parser.get_parsed_content("postprocessing")({"pred": scores[0]})["pred"]
    assert torch.equal(torch.as_tensor(mask)[0].long(), scores[0].argmax(0))
    source = open_source(tmp_path / "bundle")
    assert source.description["labels"] == ["background", "liver", "spleen"]
    assert (source.description["mean"], source.description["spacing"]) == ([0.5, 1.0], [1.0, 1.0, 2.0])


def test_a_bundle_that_would_compute_something_else_is_refused(
    stitched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    record = torch.jit.trace
    doubled = lambda network, example, **how: record(nn.Sequential(network, Twice()), example, **how)  # noqa: E731
    monkeypatch.setattr(torch.jit, "trace", doubled)
    with pytest.raises(SutureError) as refused:
        export_bundle(stitched, tmp_path / "joint")
    assert refused.value.code == "bundle.differs"
    assert list(tmp_path.iterdir()) == []
