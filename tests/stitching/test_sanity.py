"""A network that cannot mean what it says is told at export: what it gives, weights, and what an output hangs on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from suture.bundle import export_model, pack
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import check_inputs
from suture_stitching.local import read_members
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load, save

LABELS = ("a", "b")


def net(*last: nn.Module, outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, outputs), *last)


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Averaging(nn.Module):
    """Two networks' probabilities, averaged: nothing at the end says what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = net(nn.Softmax(1)), net(nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) + self.two(x)) / 2


@pytest.mark.parametrize(
    ("module", "given", "gives"),
    [
        (net(), {}, "logits"),
        (net(nn.Softmax(1)), {}, "probabilities"),
        (net(nn.LogSoftmax(1)), {}, "logits"),
        (net(nn.Sigmoid(), outputs=1), {}, "probabilities"),
        (net(nn.Sigmoid()), {"task": "multilabel"}, "probabilities"),
        (net(nn.Softmax(1), nn.Unflatten(1, (2, 1)), nn.Flatten()), {}, "probabilities"),
        (Averaging(), {}, "probabilities"),
        (net(), {"task": "regression", "labels": None}, "values"),
        (net(nn.Hardtanh(0, 1), outputs=1), {"output": "probabilities"}, "probabilities"),
        # Left open, or contradicted by what the network does.
        (net(nn.Hardtanh(0, 1), outputs=1), {}, None),
        (net(nn.Sigmoid()), {}, None),
        (net(nn.Softmax(1)), {"output": "logits"}, None),
        (net(nn.Softmax(1)), {"task": "multilabel"}, None),
        (net(), {"output": "probabilities"}, None),
    ],
)
def test_what_a_network_gives_is_seen_or_asked(tmp_path: Path, module, given, gives):
    path, told = tmp_path / "model.safetensors", []
    description = {"labels": LABELS, "license": "CC0-1.0", **given}
    example = torch.rand(4, 1, 8, 8)
    if gives is None:
        with pytest.raises(SutureError) as refused:
            export_model(module, example, path, **description)
        assert refused.value.code == "export.output_format"
        assert refused.value.hint
        assert list(tmp_path.iterdir()) == []
        return
    metadata = export_model(module, example, path, tell=told.append, **description)
    assert next(iter(metadata.outputs.values())).format == gives
    assert gives in told[0]


def test_probabilities_described_as_logits_are_refused_wherever_both_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    right = export_model(net(nn.Softmax(1)), torch.rand(2, 1, 8, 8), path, labels=LABELS, license="CC0-1.0")
    wrong = right.to_json().replace('"format": "probabilities"', '"format": "logits"')
    (tmp_path / "suture.json").write_text(wrong, encoding="utf-8")
    for refuse in (lambda: read_members([path]), lambda: pack(path, ModelMetadata.from_json(wrong), repo="a/b")):
        with pytest.raises(SutureError) as refused:
            refuse()
        assert refused.value.code == "metadata.output"
        assert "softmax" in str(refused.value)


class Masked(nn.Module):
    def __init__(self, fill: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        mask = torch.zeros(3, 3, dtype=dtype)
        mask[0, 1] = fill
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x).unsqueeze(1) + self.mask.float()).softmax(2).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_no_numbers_are_named(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    export(Masked(float("-inf"), dtype), torch.randn(2, 3), path)  # a mask may hold infinity
    for bad in (float("nan"), float("inf")):
        module = Masked(0.0, dtype)
        with torch.no_grad():
            module.mask[1] = torch.tensor([0.25, bad, -3.0])
        with pytest.raises(SutureError) as refused:
            export(module, torch.randn(2, 3), path.with_name("bad.safetensors"))
        assert refused.value.code == "model.not_finite"
        assert "mask" in str(refused.value)


def test_a_file_with_nan_is_not_packed(tmp_path):
    path = tmp_path / "model.safetensors"
    metadata = export_model(net(), torch.rand(2, 1, 8, 8), path, labels=LABELS, license="CC0-1.0")
    (member,) = read_members([path], [_written(tmp_path, metadata)])
    tensors = {name: tensor.clone() for name, tensor in member.model.tensors.items()}
    next(one for one in tensors.values() if one.dim() == 4)[0, 0, 0, 0] = float("nan")
    save(member.model.graph, tensors, path)
    with pytest.raises(SutureError) as refused:
        pack(path, metadata, repo="a/b")
    assert refused.value.code == "model.not_finite"


def _written(folder: Path, metadata: ModelMetadata) -> Path:
    (folder / "suture.json").write_text(metadata.to_json(), encoding="utf-8")
    return folder / "suture.json"


class OverTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class ByDeviation(nn.Module):
    """Standardises over the batch: NaN for a sample alone, a number for the same one in company."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


class NoNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-1 - x.abs())


class NoNumberAlone(nn.Module):
    """Within the sample, but NaN for each of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x[:, :1].std(1, keepdim=True)


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "export.batch_dependent"),
        (OverTheBatch(), "export.batch_dependent"),
        (ByDeviation(), "export.batch_dependent"),
        (NoNumber(), "export.not_finite"),
        (NoNumberAlone(), "export.not_finite"),
        (Dead(), "export.constant"),
    ],
)
def test_outputs_that_do_not_follow_the_sample_are_refused(tmp_path, module, code):
    with pytest.raises(SutureError) as refused:
        export(module, torch.randn(2, 3), tmp_path / "m.safetensors")
    assert refused.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_sure_of_its_example_is_not_constant(tmp_path):
    sure = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    nn.init.constant_(sure[0].weight, 40.0)
    export(sure, torch.full((2, 3), 5.0), tmp_path / "m.safetensors")


def test_columns_are_found_by_name_or_said_in_order(tmp_path):
    x = torch.randn(40, 3).numpy()
    y = (x[:, 0] > 0).astype(int)
    (tmp_path / "train.csv").write_text("age,bp,hr,label\n1,2,3,0\n", encoding="utf-8")
    for name, channels in (("named", ("age", "bp", "hr")), ("unnamed", None)):
        path = tmp_path / name / "model.safetensors"
        path.parent.mkdir()
        description = {"labels": LABELS, "license": "CC0-1.0", "channels": channels}
        _written(path.parent, export_model(nn.Linear(3, 2), torch.randn(2, 3), path, **description))
    named, unnamed = read_members([tmp_path / "named", tmp_path / "unnamed"])
    table = ArrayDataset(x, y, LABELS, channels=("hr", "age", "bp"))
    check_inputs([named, named], table)
    with pytest.raises(SutureError, match="order could differ"):
        check_inputs([named, unnamed], table)
    with pytest.raises(SutureError) as refused:
        check_inputs([unnamed, unnamed], table)
    assert refused.value.code == "dataset.columns_unnamed"
    table.ordered = True
    check_inputs([unnamed, unnamed], table)


@pytest.mark.parametrize("last", [nn.LogSigmoid(), nn.Sequential(nn.Sigmoid(), Logarithm())])
@pytest.mark.parametrize("given", [{"task": "multilabel"}, {"task": "multilabel", "output": "logits"}, {"outputs": 1}])
def test_logarithms_of_probabilities_are_no_logits_of_a_sigmoid(tmp_path, last, given):
    path, described = tmp_path / "model.safetensors", {"labels": LABELS, "license": "CC0-1.0"}
    module = net(last, outputs=given.get("outputs", 2))
    stated = {name: value for name, value in given.items() if name != "outputs"}
    with pytest.raises(SutureError, match="logarithm") as refused:
        export_model(module, torch.rand(4, 1, 8, 8), path, **stated, **described)
    assert refused.value.code == "export.output_format"
    # So it is where the file comes from elsewhere.
    export(module, torch.rand(2, 1, 8, 8), path)
    scores = net(outputs=given.get("outputs", 2))
    metadata = export_model(scores, torch.rand(2, 1, 8, 8), tmp_path / "scores.safetensors", **stated, **described)
    with pytest.raises(SutureError, match="logarithm") as refused:
        pack(path, metadata, repo="a/b")
    assert refused.value.code == "metadata.output"
    # A softmax makes probabilities of their logarithms.
    export_model(net(nn.LogSoftmax(1)), torch.rand(4, 1, 8, 8), path, **described)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def _in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (Lazy, "export.no_weights", "run module(example) once"),
        (lambda: net().to("meta"), "export.no_weights", "load_state_dict"),
        (_in_inference_mode, "export.inference_mode", "load_state_dict"),
        (lambda: torch.jit.script(net()), "export.recorded", "open_source"),
        (lambda: torch.jit.trace(net(), torch.rand(2, 1, 8, 8)), "export.recorded", "open_source"),
        (lambda: torch.export.export(net(), (torch.rand(2, 1, 8, 8),)).module(), "export.recorded", "made of"),
    ],
)
def test_what_is_no_network_of_plain_weights_is_said(tmp_path, make, code, words):
    with pytest.raises(SutureError) as refused:
        export_model(make(), torch.rand(4, 1, 8, 8), tmp_path / "m.safetensors", labels=LABELS, license="CC0-1.0")
    assert refused.value.code == code
    assert words in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # by torch's own compiler
def test_what_was_compiled_needs_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere")
    compiled, whole, part = net(), net(), net()
    compiled.compile()
    part[3] = torch.compile(part[3])
    with torch.no_grad():
        want = net()(torch.ones(2, 1, 8, 8))
    for place, module in enumerate((compiled, torch.compile(whole), part)):
        exported = export(module, torch.rand(2, 1, 8, 8), tmp_path / f"{place}.safetensors")
        assert torch.allclose(load(exported.path)(torch.ones(2, 1, 8, 8)), want)


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("classification", (2, 8, 8)),
        ("multilabel", (2, 1, 1)),
        ("regression", (2, 8)),
        ("segmentation", (2,)),
        ("segmentation", (2, 8)),
    ],
)
def test_outputs_have_the_axes_of_the_task(tmp_path, task, shape):
    size = torch.Size(shape).numel()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, size), nn.Unflatten(1, shape))
    labels = None if task == "regression" else LABELS
    with pytest.raises(SutureError) as refused:
        export_model(
            module, torch.rand(2, 1, 8, 8), tmp_path / "m.safetensors", task=task, labels=labels, license="CC0-1.0"
        )
    assert refused.value.code == "export.output_axes"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layers", "side", "lies"),
    [
        ([nn.Conv2d(1, 2, 3, padding=1)], 12, None),
        ([nn.Conv2d(1, 2, 4, stride=4)], 12, "3 x 3 of inputs of 12 x 12"),
        ([nn.Conv2d(1, 2, 3, stride=2, padding=1)], 9, "5 x 5 of inputs of 9 x 9"),
        ([nn.Conv2d(1, 2, 3, padding=1), nn.Upsample(scale_factor=2)], 8, "16 x 16 of inputs of 8 x 8"),
        ([nn.Conv2d(1, 2, 3)], 12, "10 x 10 of inputs of 12 x 12"),
    ],
)
def test_where_masks_of_another_size_lie_is_said_or_refused(tmp_path, layers, side, lies):
    lines: list[str] = []

    def made() -> tuple[int | None, ...]:
        example, path = torch.rand(2, 1, side, side), tmp_path / "m.safetensors"
        fields = {"task": "segmentation", "labels": LABELS, "license": "CC0-1.0"}
        return (
            export_model(nn.Sequential(*layers), example, path, tell=lines.append, **fields)
            .inputs["image"]
            .spatial_shape
        )

    if lies is not None and lies.startswith("10"):  # a convolution without padding: its mask is the middle
        with pytest.raises(SutureError, match=lies) as refused:
            made()
        assert refused.value.code == "export.mask_size"
        assert "pad" in str(refused.value)
        assert list(tmp_path.iterdir()) == []
        return
    assert made() == (side, side)
    assert [line for line in lines if "stretched" in line] == [line for line in lines if lies and lies in line]
    assert any("stretched" in line for line in lines) == (lies is not None)


def test_labels_have_an_order(tmp_path):
    def exported(labels):
        path = tmp_path / "m.safetensors"
        return export_model(net(), torch.rand(2, 1, 8, 8), path, labels=labels, license="CC0-1.0").labels

    assert exported(np.array(["b", "a"])) == ("b", "a")
    for labels in ({"a", "b"}, {"b": 1, "a": 0}, {0: "a", 1: "b"}):
        with pytest.raises(SutureError) as refused:
            exported(labels)
        assert refused.value.code == "argument.type"
        assert "order" in str(refused.value)
    with pytest.raises(SutureError, match=r"labels=list\(…\)"):
        exported(iter(["b", "a"]))


class Chaotic(nn.Module):
    """Adds and takes away what is as large as the batch, and lets the last bits grow a million times."""

    def forward(self, x: Tensor) -> Tensor:
        size = torch.ones(x.shape[0]).sum() * 100.1
        x = x + size - size
        for _ in range(20):
            x = 4 * x * (1 - x)
        return x


def test_a_network_whose_outputs_are_rounding_is_told_from_one_that_looks_at_the_batch(tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="not in double precision") as refused:
        export(Chaotic(), torch.linspace(0.1, 0.9, 12).reshape(3, 4), tmp_path / "model.safetensors")
    assert refused.value.code == "export.rounding"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_name_a_model_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "north+south"
    folder.mkdir()
    path = folder / "model.safetensors"
    stated = export_model(net(), torch.randn(2, 1, 8, 8), path, labels=LABELS, license="MIT")
    (folder / "suture.json").write_text(stated.model_dump_json(by_alias=True))
    with pytest.raises(SutureError) as refused:
        read_members([path])
    assert (refused.value.code, refused.value.hint) == ("model.name", "rename the folder north+south")
