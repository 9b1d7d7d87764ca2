"""ONNX files give what the portable model gives, at every free size, and what has no form in ONNX is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tests import cli_json
from tests.stitching.networks import LABELS, dataset, deep, images, member, plain
from torch import Tensor, nn
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.compatibility import ensemble_output
from suture_contract.errors import SutureError
from suture_contract.exit_codes import ExitCode
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import shared_input
from suture_stitching.fitting.fit import FitOptions, fit
from suture_stitching.formats.onnx import OnnxExported, export_onnx
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import PortableModel, load


class Pixels(nn.Module):
    """Convolutions, norms, poolings, resampling and arithmetic over images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same")
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4))
        self.act = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.act(self.norms(self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]))))
        small = F.max_pool2d(y, 2) + F.avg_pool2d(y, 3, 2, 1)
        bigger = F.interpolate(small, scale_factor=2, mode="bilinear") + self.up(small)
        weighed = bigger * F.adaptive_avg_pool2d(y, 1).sigmoid() - y.roll(1, 2) / (1 + y.abs())
        return torch.cat([weighed, torch.where(y > 0, y, -y).flip(3)], 1).softmax(1)


class Solid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.MaxPool3d(2), nn.BatchNorm3d(4), nn.Mish(),
            nn.Upsample(scale_factor=2, mode="trilinear"), nn.ConvTranspose3d(4, 2, 2, 2), nn.AvgPool3d(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SignalAndCodes(nn.Module):
    """A convolution over a signal and an LSTM and a GRU over it, an embedding of codes beside, attention over all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 5, 2, 2)
        self.lstm = nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.embedding = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, signal: Tensor, codes: Tensor) -> dict[str, Any]:
        steps = F.max_pool1d(self.conv(signal), 2).transpose(1, 2)
        tokens = torch.cat([self.lstm(steps)[0], self.gru(steps)[0], self.embedding(codes)], 1)
        encoded = self.encoder(tokens)
        first, second = encoded.mean(1).chunk(2, 1)
        pooled = torch.cat([first, second.exp().clamp(max=3)], 1)
        return {"logits": self.head(pooled), "more": [torch.einsum("nlc,nc->nl", encoded, pooled), (pooled[:, :2],)]}


def portable(module: nn.Module, example: Any, path: Path, *, free: bool = False) -> PortableModel:
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return load(export(module.eval(), example, path, dynamic_spatial=free).path)


def run(written: OnnxExported, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(written.path)
    return session.run(None, {name: x.numpy() for name, x in zip(written.inputs, inputs, strict=True)})


@pytest.mark.parametrize(
    ("module", "shape", "other"),
    [(Pixels(), (2, 16, 16), (2, 22, 36)), (Solid(), (1, 8, 8, 8), (1, 12, 6, 10))],
    ids=["pixels", "solid"],
)
def test_free_sizes_stay_free(
    tmp_path: Path, module: nn.Module, shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    model = portable(module, torch.randn(2, *shape), tmp_path / "m.safetensors", free=True)
    written = export_onnx(model, tmp_path / "m.onnx")
    assert written.inputs == {"input": ("batch", shape[0], *(f"size_{axis}" for axis in range(2, len(shape) + 1)))}
    assert list(written.outputs) == ["output"]
    assert written.difference <= 1e-5
    x = torch.randn(7, *other)
    torch.testing.assert_close(torch.from_numpy(run(written, x)[0]), model(x), rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(onnx.load(written.path), full_check=True)


def test_several_inputs_and_nested_outputs_go_by_their_names(tmp_path: Path) -> None:
    example = (torch.randn(2, 2, 16), torch.randint(0, 20, (2, 3)))
    model = portable(SignalAndCodes(), example, tmp_path / "m.safetensors")
    written = export_onnx(model, tmp_path / "m.onnx", example=example)
    assert written.inputs == {"input_0": ("batch", 2, 16), "input_1": ("batch", 3)}
    assert list(written.outputs) == ["logits", "more.0", "more.1.0"]
    signal, codes = torch.randn(5, 2, 16), torch.randint(0, 20, (5, 3))
    want = model(signal, codes)
    for name, value, tensor in zip(
        written.outputs, run(written, signal, codes), (want["logits"], want["more"][0], want["more"][1][0]), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(value), tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_stitched_ensemble_with_its_labels(tmp_path: Path) -> None:
    members = [member(plain(), tmp_path, seed=1), member(deep(), tmp_path, "south/net", seed=2)]
    fitted = fit(members, dataset(), options=FitOptions(refine=False, max_matches=1))
    candidate = next(
        c for c in fitted.candidates.candidates if len(c.members) == 2 and c.kind not in ("member", "ensemble")
    )
    composed = compose(members, fitted, candidate.id)
    metadata = members[0].metadata.model_copy(
        update={
            "inputs": {"image": shared_input(members)},
            "outputs": {"p": ensemble_output([member.metadata for member in members], fitted.candidates.labels)},
        }
    )
    written = export_onnx(composed, tmp_path / "stitched.onnx", metadata=metadata)
    x = torch.from_numpy(images(20, seed=3)[0])
    (have,) = run(written, x)
    assert list(written.inputs) == ["image"]
    assert list(written.outputs) == ["p"]
    torch.testing.assert_close(torch.from_numpy(have), composed(x), rtol=1e-4, atol=1e-5)
    properties = onnxruntime.InferenceSession(written.path).get_modelmeta().custom_metadata_map
    assert json.loads(properties["labels"]) == list(LABELS)
    assert properties["task"] == "classification"
    assert properties["suture.json"] == metadata.to_json()


def test_a_name_that_is_taken_gives_way(tmp_path: Path) -> None:
    owner = member(plain(), tmp_path)
    inside = {name for node in _nodes(owner.model, tmp_path) for name in node.output}
    taken = sorted(inside - {"output"})[0]
    metadata = owner.metadata.model_copy(update={"inputs": {taken: owner.input}})
    written = export_onnx(owner.model, tmp_path / "m.onnx", metadata=metadata)
    assert list(written.inputs) == [f"{taken}_"]
    assert written.outputs == {"y": ("batch", 3)}


def _nodes(model: PortableModel, folder: Path) -> Any:
    return onnx.load(export_onnx(model, folder / "first.onnx").path).graph.node


def _projected() -> nn.Module:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, proj_size=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    return Projected()


@pytest.mark.parametrize(
    ("module", "example", "code", "says"),
    [
        (_projected(), torch.randn(2, 5, 3), "onnx.operator", "aten.lstm.input, module rnn"),
        (nn.Linear(3, 2).bfloat16(), torch.randn(2, 3).bfloat16(), "onnx.dtype", "bfloat16"),
    ],
    ids=["projected", "bfloat16"],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_has_no_form_is_named(tmp_path: Path, module: nn.Module, example: Tensor, code: str, says: str) -> None:
    model = portable(module, example, tmp_path / "m.safetensors")
    with pytest.raises(SutureError) as refused:
        export_onnx(model, tmp_path / "m.onnx")
    assert refused.value.code == code
    assert says in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_outputs_over_the_tolerance_are_refused_and_an_older_file_stays(tmp_path: Path) -> None:
    model = portable(plain(), torch.randn(2, 2, 8, 8), tmp_path / "m.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"older")
    with pytest.raises(SutureError) as refused:
        export_onnx(model, tmp_path / "m.onnx", tolerance=-1.0)
    assert refused.value.code == "onnx.differs"
    assert (tmp_path / "m.onnx").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.safetensors"]


def test_an_example_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = portable(plain(), torch.randn(2, 2, 8, 8), tmp_path / "m.safetensors")
    with pytest.raises(SutureError) as refused:
        export_onnx(model, tmp_path / "m.onnx", example=torch.randn(2, 1, 8, 8))
    assert refused.value.code == "input.shape"


def test_the_command_writes_a_model_with_its_metadata(tmp_path: Path) -> None:
    owner = member(plain(), tmp_path)
    (tmp_path / "north.net.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "suture.json").write_text(owner.metadata.to_json())
    result = CliRunner().invoke(app, ["export-onnx", str(tmp_path), str(tmp_path / "m.onnx"), "--format", "json"])
    cli_json.checked(["export-onnx"], result.stdout)
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert written["inputs"] == {"x": ["batch", 2, 8, 8]}
    assert written["outputs"] == {"y": ["batch", 3]}
    properties = onnxruntime.InferenceSession(written["path"]).get_modelmeta().custom_metadata_map
    assert properties["suture.json"] == owner.metadata.to_json()


def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    result = CliRunner().invoke(app, ["export-onnx", str(tmp_path / "model.safetensors"), str(tmp_path / "m.onnx")])
    assert result.exit_code == ExitCode.REFUSED
    assert not (tmp_path / "m.onnx").exists()
