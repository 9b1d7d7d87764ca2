"""Exporting: the file alone gives what the module gave, and what cannot be exported is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.stitching.networks import MixedPrecision
from tests.stitching.outputs import flat
from torch import Tensor, nn

from suture_contract.model.format import check_file
from suture_contract.model.graph import Input
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load


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
