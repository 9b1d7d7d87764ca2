"""`suture inspect`: what it shows of models in good order, and that hostile files do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from tests import cli_json
from torch import nn
from typer.testing import CliRunner

from suture import inspecting
from suture.cli.app import app
from suture_contract.errors import SutureError
from suture_contract.exit_codes import ExitCode
from suture_contract.report.network import MOST_BLOCKS, blocks
from suture_stitching.features.points import find_points
from suture_stitching.inspect import inspect
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

CORPUS = Path(__file__).parents[1] / "security" / "corpus"
UNET = CORPUS / "good" / "unet.safetensors"
METADATA: dict[str, Any] = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"num_channels": 1, "spatial_shape": [14, 14]}},
    "outputs": {"class": {"num_channels": 3}},
    "labels": ["benign", "malignant", "<b>other</b>"],
    "license": "CC-BY-4.0",
    "training_data": {"n": 1234},
}


def suture(*arguments: str | Path) -> Result:
    words = [str(argument) for argument in arguments]
    ended = CliRunner().invoke(app, words)
    if "json" in words and ended.exit_code == 0:
        cli_json.checked(words, ended.stdout)
    return ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as it is pulled from a hub, or lies in a cache: the model's file is a link."""
    (tmp_path / "blob").write_bytes((CORPUS / "good" / "cnn.safetensors").read_bytes())
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "suture.json").write_text(json.dumps(METADATA))
    (folder / "README.md").write_text("# a model\n")
    return folder


def test_for_people(folder: Path) -> None:
    ended = suture("inspect", folder)
    assert ended.exit_code == 0, ended.output
    for shown in (
        "classification, license CC-BY-4.0",
        "image float32 (N, 1, 14, 14)",
        "class float32 (N, 3)",
        "benign, malignant, <b>other</b>",
        "aten.conv2d.default",
        "clean cut",
        "1,234 it was trained on",
        "does not leave",
    ):
        assert shown in ended.stdout


def test_for_machines(folder: Path) -> None:
    ended = suture("inspect", folder, "--format", "json")
    assert ended.exit_code == 0, ended.output
    document = json.loads(ended.stdout)
    model = load(folder / "model.safetensors")
    assert document["parameters"] == sum(tensor.numel() for tensor in model.tensors.values())
    assert [point["name"] for point in document["points"]] == [point.name for point in find_points(model)]
    assert document["operators"]["aten.conv2d.default"] == 2
    assert document["costs"][0]["inputs"] == [[1, 1, 14, 14]]


def test_costs_at_several_sizes() -> None:
    costs = inspect(UNET, sizes=[(32, 32), (64, 64)]).costs
    assert [cost.inputs for cost in costs] == [((1, 1, 32, 32),), ((1, 1, 64, 64),)]
    assert costs[1].flops == pytest.approx(4 * costs[0].flops, rel=0.01)
    assert costs[1].peak_bytes > 2 * costs[0].peak_bytes
    assert all(cost.bound_bytes > cost.peak_bytes for cost in costs)


def test_skips_around_a_point_are_counted() -> None:
    found = {point.module: point for point in inspect(UNET, sizes=[(16, 16)]).points}
    assert len(found["bottleneck.5"].bypassed) == 2
    assert found["encoder1.5"].clean


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_a_drawing(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"network.{suffix}"
    ended = suture("inspect", UNET, "--plot", out, "--format", "json")
    assert ended.exit_code == 0, ended.output
    text = out.read_text()
    assert "<script" not in text
    assert "src=" not in text
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    marks = [item for item in ElementTree.fromstring(svg).iter() if item.tag.endswith("circle") and len(item)]
    points = json.loads(ended.stdout)["points"]
    assert len(marks) == len(points)
    assert [mark.get("class") for mark in marks] == ["clean" if p["clean"] else "bypassed" for p in points]
    assert svg.count('class="skip"') >= 2


def test_blocks_hold_every_operation_once_and_read_only_from_before(tmp_path: Path) -> None:
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(30)))
    for layer in deep:
        nn.init.eye_(layer[0].weight)
    graph = export(deep, torch.rand(2, 4), tmp_path / "deep.safetensors").graph
    found = blocks(graph)
    assert len(found) == 31 <= MOST_BLOCKS
    nodes = [node for block in found for node in block.nodes]
    assert nodes == sorted(nodes) == [i for i, node in enumerate(graph.nodes) if node.op != "tensor"]
    assert all(source < row for row, block in enumerate(found) for source in block.sources)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((UNET, "--size", "16"), ExitCode.REFUSED, "takes any size|more sizes"),
        ((UNET, "--size", "16,x"), ExitCode.USAGE, "whole numbers"),
        ((UNET, "--size", "-4,4"), ExitCode.USAGE, "whole numbers"),
        ((UNET, "--plot", "out.png"), ExitCode.USAGE, ".svg or .html"),
        ((CORPUS / "good" / "cnn.safetensors", "--size", "15,15"), ExitCode.REFUSED, "does not fit"),
        ((CORPUS / "good",), ExitCode.REFUSED, "none is named model.safetensors"),
        (("nowhere",), ExitCode.USAGE, "does not exist"),
    ],
)
def test_refusals(arguments: tuple[str | Path, ...], code: ExitCode, says: str) -> None:
    ended = suture("inspect", *arguments)
    assert ended.exit_code == code, ended.output
    assert any(words in ended.stderr for words in says.split("|")), ended.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in (CORPUS / "hostile").glob("*.json")))
def test_hostile_metadata_is_refused(folder: Path, name: str) -> None:
    ended = suture("inspect", folder, "--metadata", CORPUS / "hostile" / f"{name}.json")
    assert ended.exit_code == ExitCode.REFUSED
    assert ended.stderr.replace("\n", "").isprintable()


def test_hostile_files_are_refused_or_only_described() -> None:
    expected = json.loads((CORPUS / "expected.json").read_text())
    for path in sorted((CORPUS / "hostile").glob("*.safetensors")):
        try:
            inspect(path)
            code, said = 0, ""
        except SutureError as error:
            code, said = error.exit_code, str(error)
        assert said.replace("\n", "").isprintable(), path.stem
        layer = expected[path.stem]["layer"]
        # What is wrong with values shows only when they are read, which is not done here; costs are shown, not refused.
        if expected[path.stem]["code"] != "model.over_budget":
            described = layer in ("load", "run")
            assert code == (0 if described else ExitCode.REFUSED), path.stem


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a forked process takes")
def test_a_file_that_asks_for_too_much_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that takes long or much: the child ends, and the command says what to do."""
    path = CORPUS / "good" / "cnn.safetensors"

    def greedy(*_: object, **__: object) -> None:
        held = []
        while True:
            held.append(bytearray(2**24))

    monkeypatch.setattr("suture_stitching.inspect.inspect", greedy)
    ended = suture("inspect", path, "--memory", "0.125")
    assert ended.exit_code == ExitCode.REFUSED
    assert "0.125 GiB" in ended.stderr
    assert "--seconds and --memory" in ended.stderr
    monkeypatch.setattr("suture_stitching.inspect.inspect", lambda *_, **__: threading.Event().wait(60))
    monkeypatch.setattr(inspecting, "_read", lambda pipe, until: None if not pipe.poll(0.1) else {})
    ended = suture("inspect", path)
    assert ended.exit_code == ExitCode.REFUSED
    assert "model.over_budget" in ended.stderr


def test_no_command_imports_torch_before_it_is_run() -> None:
    code = (
        "import sys; from suture.cli.app import app; from suture_contract.console.tree import walk\n"
        "from typer.main import get_command; list(walk(get_command(app))); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "False"
