"""Exporting: the file alone gives what the module gave, and what cannot be exported is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.format import check_file
from suture_contract.model.graph import Input
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [leaf for item in items for leaf in flat(item)]


@pytest.mark.parametrize("size", [1, 5, 9])
def test_the_file_alone_gives_the_same_outputs(network, size):
    x = network.batch(size, seed=size)
    with torch.no_grad():
        for want, have in zip(flat(network.module(x)), flat(network.load()(x)), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


def test_gradients_of_input_and_weights_are_the_same(network):
    model = network.load().requires_grad_()
    x = network.batch(3)
    tracked = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    grads = []
    for net, leaf in zip((network.module, model), tracked, strict=True):
        net.zero_grad()
        sum(out.square().sum() for out in flat(net(leaf))).backward()
        grads.append(leaf.grad)
    if x.is_floating_point():
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
    originals = dict(network.module.named_parameters())
    compared = 0
    for name, tensor in model.tensors.items():
        if name in originals:
            torch.testing.assert_close(tensor.grad, originals[name].grad, rtol=1e-4, atol=1e-5)
            compared += 1
    # The normalised weight of "writing" is computed from two parameters at export.
    folded = 2 if network.name == "writing" else 0
    assert compared == len({id(p) for p in originals.values()}) - folded


def test_a_frozen_model_needs_no_gradient_but_passes_it_on(networks):
    network = networks("resnet")
    model = network.load()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = network.batch(2).requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_the_module_is_left_as_it_was(tmp_path, networks):
    module = networks("resnet").module
    module.train()
    module.layer1.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    try:
        export(module, torch.randn(2, 3, 16, 16), tmp_path / "m.safetensors")
        assert [part.training for part in module.modules()] == modes
    finally:
        module.eval()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_tied_weights_are_stored_once(networks):
    header = check_file(networks("tied").path)
    assert set(header.tensors) == {"first.weight", "first.bias", "second.bias"}


def test_nested_outputs_stay_nested(networks):
    network = networks("nested")
    output = network.load()(network.batch(2))
    assert list(output) == ["logits", "more"]
    assert isinstance(output["more"], tuple)
    assert output["more"][1][0].shape == (2, 4)


def test_constants_are_computed_once_and_dropout_is_gone(networks):
    graph = check_file(networks("writing").path).graph
    ops = [node.op for node in graph.nodes]
    assert not any("zeros" in op or "sqrt" in op or "norm" in op for op in ops)
    assert not any("dropout" in node.op for node in check_file(networks("mlp").path).graph.nodes)


def test_nodes_know_their_module(networks):
    graph = check_file(networks("resnet").path).graph
    assert {"stem.0", "layer1.0.conv1", "layer2.0.shortcut.1", "fc"} <= {node.module for node in graph.nodes}


def test_sizes_are_stated(networks):
    graph = check_file(networks("unet").path).graph
    assert graph.inputs == (Input((None, 1, 16, 16), "float32"),)
    assert graph.outputs == (Input((None, 2, 16, 16), "float32"),)


def test_other_sizes_stay_free_when_asked(tmp_path, networks):
    module = networks("unet").module
    exported = export(module, torch.randn(2, 1, 16, 16), tmp_path / "m.safetensors", dynamic_spatial=True)
    assert exported.graph.inputs[0].shape == (None, 1, None, None)
    x = torch.randn(3, 1, 32, 24)
    with torch.no_grad():
        torch.testing.assert_close(load(exported.path)(x), module(x))


def test_several_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, x, y):
            return self.a(x) * self.b(y)

    module = Two()
    exported = export(module, (torch.randn(2, 3), torch.randn(2, 5)), tmp_path / "m.safetensors")
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    with torch.no_grad():
        assert torch.equal(load(exported.path)(x, y), module.eval()(x, y))


@dataclass
class Heads:
    scores: Tensor
    extra: Tensor | None = None


class Returning(nn.Module):
    """Gives what `what` makes of scores `(N, 2)`, features `(N, 3)` and maps `(N, 2, 4)` and `(N, 2, 2)`."""

    def __init__(self, what: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.what = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(8, 2), what

    def forward(self, x: Tensor) -> Any:
        maps = self.body(x)
        scores = self.head(maps.flatten(1))
        return self.what(scores, maps.mean(1)[:, :3], maps, maps[..., ::2])


class Several(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("what", "name", "meant", "shape"),
    [
        (lambda s, f, m, h: s, None, lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: [s], None, lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: (s, None), None, lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: {"features": f, "logits": s}, None, lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: {"out": m, "aux": m * 2}, None, lambda s, f, m, h: m, (2, 4)),
        (lambda s, f, m, h: {"features": f, "logits": s}, "features", lambda s, f, m, h: f, (3,)),
        (lambda s, f, m, h: (s, {"more": [f, m]}), "1.more.0", lambda s, f, m, h: f, (3,)),
        (lambda s, f, m, h: Several(f, s), "second", lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: Heads(s), None, lambda s, f, m, h: s, (2,)),
        (lambda s, f, m, h: Heads(s, f), "extra", lambda s, f, m, h: f, (3,)),
        (lambda s, f, m, h: [m, h], None, lambda s, f, m, h: m, (2, 4)),
        (lambda s, f, m, h: s[:, 0], None, lambda s, f, m, h: s[:, :1], (1,)),
        (lambda s, f, m, h: s[:, :1].squeeze(), None, lambda s, f, m, h: s[:, :1], (1,)),
    ],
)
def test_one_of_several_outputs_is_named_or_plainly_meant(tmp_path, what, name, meant, shape):
    module = Returning(what)
    exported = export(module, torch.randn(2, 1, 4), tmp_path / "m.safetensors", output=name, single=True)
    assert exported.graph.outputs == (Input((None, *shape), "float32"),)
    x, wanted = torch.randn(3, 1, 4), Returning(meant)
    with torch.no_grad():
        assert torch.equal(load(exported.path)(x), wanted(x))
        assert isinstance(module(x), type(what(*torch.ones(4, 3, 2))))  # it gives what it gave before


@pytest.mark.parametrize(
    ("what", "name", "code", "says"),
    [
        (lambda s, f, m, h: (s, f), None, "export.outputs", "0 (2, 2), 1 (2, 3)"),
        (lambda s, f, m, h: {"scores": s, "features": f}, "logits", "export.outputs", "scores (2, 2)"),
        (lambda s, f, m, h: [m, m * 2], None, "export.outputs", "2 outputs"),
        (lambda s, f, m, h: None, None, "export.outputs", "no tensor"),
        (lambda s, f, m, h: s.argmax(1), None, "export.output", "argmax"),
    ],
)
def test_an_output_that_is_not_plain_is_asked_for(tmp_path, what, name, code, says):
    with pytest.raises(SutureError) as refused:
        export(Returning(what), torch.randn(2, 1, 4), tmp_path / "m.safetensors", output=name, single=True)
    assert refused.value.code == code
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dataclass_becomes_a_dictionary(tmp_path):
    module = Returning(lambda s, f, m, h: Heads(s, f))
    exported = export(module, torch.randn(2, 1, 4), tmp_path / "m.safetensors")
    assert list(exported.graph.output) == ["scores", "extra"]


class MixedPrecision(nn.Module):
    """Full precision where it matters, as in `with torch.autocast(..., enabled=False)`."""

    def __init__(self, enabled: bool, device: str = "cpu") -> None:
        super().__init__()
        self.fc, self.enabled, self.device = nn.Linear(3, 3), enabled, device

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        with torch.autocast(self.device, enabled=self.enabled):
            a, b = self.fc(y).float() * 2, y + 1
            with torch.autocast("cpu", enabled=False):
                b = b.exp()
        return a - b


class SineEmbedding(nn.Module):
    """Positions counted along a row whose length is free, as in EdgeNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.ones_like(x[:, 0]).cumsum(1)
        return x + torch.stack([steps.sin(), steps.cos()], 1)


class Repeating(nn.Module):
    """One query per window of an image, as in GCViT."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(x.shape[-1], dim=0).sum(-1) + x.repeat_interleave(2, -1).sum()


class ProjectedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 5, num_layers=2, proj_size=3, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, (_hidden, cell) = self.rnn(x.transpose(1, 2))
        return output, cell.transpose(0, 1)


class LongSignal(nn.Module):
    """A thousand steps are recorded as one operator, not step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRU(2, 3, bidirectional=True), nn.LSTM(6, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps, state = self.gru(x.repeat(1, 1, 64).permute(2, 0, 1))
        output, (hidden, _cell) = self.lstm(steps)
        return output.transpose(0, 1), state.transpose(0, 1), hidden.transpose(0, 1)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool1d(x, 3, 2, padding=1, ceil_mode=True)
        return F.max_pool1d(y, kernel_size=2) + nn.MaxPool1d(2, stride=1, dilation=2)(y)[..., :1]


@pytest.mark.parametrize(
    "module",
    [
        MixedPrecision(False),
        MixedPrecision(True, "cuda"),
        SineEmbedding(),
        Repeating(),
        ProjectedLstm(),
        LongSignal(),
        Pooled(),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_what_networks_of_others_need(tmp_path, module, free):
    channels, length = (4, 3) if isinstance(module, MixedPrecision) else (2, 16)
    exported = export(module.eval(), torch.randn(2, channels, length), tmp_path / "m.safetensors", dynamic_spatial=free)
    model = load(exported.path)
    # A linear layer fixes the length.
    longer = length if isinstance(module, MixedPrecision) or not free else 21
    x = torch.randn(3, channels, longer)
    with torch.no_grad():
        for want, have in zip(flat(module(x)), flat(model(x)), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-6)


def test_a_file_that_was_there_is_replaced(tmp_path, networks):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    export(networks("mlp").module, torch.randn(2, 13), path)
    check_file(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_portable_model_can_be_part_of_another_and_be_exported_again(tmp_path, networks):
    network = networks("lstm")
    whole = nn.Sequential(network.load(), nn.Softmax(1))
    exported = export(whole, network.batch(2), tmp_path / "m.safetensors")
    x = network.batch(5)
    with torch.no_grad():
        torch.testing.assert_close(load(exported.path)(x), network.module(x).softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype).eval()
    exported = export(module, torch.randn(2, 6, dtype=dtype), tmp_path / "m.safetensors")
    x = torch.randn(4, 6, dtype=dtype)
    assert exported.graph.inputs[0].dtype == str(dtype).removeprefix("torch.")
    with torch.no_grad():
        torch.testing.assert_close(load(exported.path)(x), module(x))


class WritingToItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() + x


class WritingInMixedTypes(nn.Module):
    """The in-place sum keeps the narrow type; a functional one would not."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.half()
        h.add_(x)
        return h * 2


class WritingThroughAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        row = h[:, 0]
        row.mul_(3)
        return h + 1


class WritingTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x + 1
        before = h * 10
        h.add_(1)
        h.mul_(2)
        return torch.cat([before, h], 1)


class WritingToAConstantBetweenReaders(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(3)
        y = x + mask
        mask.add_(1)
        return torch.cat([y, x + mask], 1)


class WritingTheInputIntoAConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0], 3)
        total += 1
        total[:, :2] = x[:, 1:]
        return x + total


@pytest.mark.parametrize(
    "module",
    [
        WritingToItsInput(),
        WritingInMixedTypes(),
        WritingThroughAView(),
        WritingTwice(),
        WritingToAConstantBetweenReaders(),
        WritingTheInputIntoAConstant(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_writing_in_place_means_the_same(tmp_path, module):
    exported = export(module, torch.randn(2, 3), tmp_path / "m.safetensors")
    x = torch.randn(4, 3)
    assert torch.equal(load(exported.path)(x.clone()), module(x.clone()))


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Counter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.histc(x)[:3]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class FixedNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(3)


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3) * 2


class SizeReturning(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, x.shape[0]


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


@pytest.mark.parametrize(
    ("module", "code", "says"),
    [
        (Deciding(), "export.data_dependent", "decision"),
        (nn.Sequential(nn.Linear(3, 3), Counter()), "export.operator", "module '1' uses aten.histc.default"),
        (Counting(), "export.mutation", "calls"),
        (Noisy(), "export.random", "random"),
        (FixedNoise(), "export.random", "random"),
        (AlwaysDropping(), "export.random", "random"),
        (FixedBatch(), "export.example", "batch of 3"),
        (MixedPrecision(True), "export.autocast", "autocast"),
        (SizeReturning(), "export.output", "int"),
        (Complex(), "export.operator", "fft"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_exported_is_named_and_nothing_is_left_behind(tmp_path: Path, module, code, says):
    with pytest.raises(SutureError) as refused:
        export(module, torch.randn(2, 3), tmp_path / "m.safetensors")
    assert refused.value.code == code
    assert says in str(refused.value)
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_reproduced_is_refused(tmp_path):
    class Stateful(nn.Module):
        """Keeps its state in Python, where a recording cannot see it."""

        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            self.factor += 1.0
            return x * self.factor

    with pytest.raises(SutureError) as refused:
        export(Stateful(), torch.randn(2, 3), tmp_path / "m.safetensors")
    assert refused.value.code in ("export.differs", "export.failed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", [(), (torch.randn(2, 3), torch.randn(3, 3)), torch.tensor(1.0), torch.randn(0, 3)])
def test_an_example_without_a_batch_is_refused(tmp_path, example):
    with pytest.raises(SutureError) as refused:
        export(nn.Linear(3, 3), example, tmp_path / "m.safetensors")
    assert refused.value.code == "export.example"


def test_an_example_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(SutureError) as refused:
        export(nn.Linear(3, 3), torch.randn(2, 5), tmp_path / "m.safetensors")
    assert refused.value.code == "export.example"
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_words_is_named(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 7:
                raise ValueError
            return x

    with pytest.raises(SutureError, match="ValueError") as refused:
        export(Picky(), torch.rand(2, 3), tmp_path / "m.safetensors")
    assert refused.value.code == "export.example"
