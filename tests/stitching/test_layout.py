"""The same numbers give the same bits, wherever they lay in memory or in a file before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, dataset, images
from tests.stitching.outputs import flat
from torch import Tensor, nn

from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import batches
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.layout import ALIGNMENT, settled
from suture_stitching.portable.runtime import PortableModel, load, save


def at(tensor: Tensor, offset: int) -> Tensor:
    """Return a copy that lies `offset` bytes behind an aligned address."""
    memory = torch.empty(tensor.nbytes + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT + offset
    copy = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def by_columns(tensor: Tensor) -> Tensor:
    """Return the same matrix, column by column in memory; anything else as it is."""
    return tensor.T.contiguous().T if tensor.dim() == 2 else tensor


def lies_well(tensor: Tensor) -> bool:
    return tensor.data_ptr() % 64 == 0 and tensor.stride() == torch.empty(tensor.shape).stride()


@pytest.fixture(scope="module")
def fitted(pair: list[Member]) -> FitResult:
    return fit(pair, dataset(), options=FitOptions(refine_steps=6, refine_candidates=3))


@pytest.mark.parametrize("offset", [4, 8, 16, 32, 60])
def test_what_lies_anywhere_is_copied_to_an_aligned_address(offset: int) -> None:
    found = settled(at(torch.arange(12.0).reshape(3, 4), offset))
    assert lies_well(found)
    assert torch.equal(found, torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.arange(5.0).expand(3, 5),
        torch.empty_strided((9, 1), (1, 9)).fill_(2),  # a column as a transposed row: in order, but not row by row
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(6.0)[1:],
    ],
)
def test_what_lies_in_another_order_is_copied(tensor: Tensor) -> None:
    assert not lies_well(tensor)
    assert lies_well(settled(tensor))
    assert torch.equal(settled(tensor), tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 1, 4), (2, 3, 4, 5)])
def test_what_lies_well_is_not_copied(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    assert settled(tensor) is tensor


def test_a_loaded_model_lies_where_torch_would_have_put_it(network) -> None:
    assert all(lies_well(tensor) for tensor in network.load().tensors.values())


def test_a_loaded_model_does_not_change_with_its_file(networks, tmp_path: Path) -> None:
    network, path = networks("mlp"), tmp_path / "model.safetensors"
    content = network.path.read_bytes()
    path.write_bytes(content)
    model, x = load(path), network.batch(3)
    want = model(x)
    with path.open("r+b") as file:
        file.write(bytes(len(content)))
    assert torch.equal(model(x), want)
    path.write_bytes(b"")
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_model_gives_the_same_bits_wherever_its_tensors_lay(network, size: int) -> None:
    model, x = network.load(), network.batch(size)
    want = flat(model(x))
    for moved in (by_columns, lambda tensor: at(tensor, tensor.element_size()), lambda tensor: at(tensor, 32)):
        other = PortableModel(model.graph, {name: moved(tensor) for name, tensor in model.tensors.items()})
        assert all(torch.equal(a, b) for a, b in zip(flat(other(x)), want, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_composed_model_gives_the_same_bits_once_it_is_written_and_read(
    pair: list[Member], fitted: FitResult, tmp_path: Path, size: int
) -> None:
    x = torch.from_numpy(images(size, seed=4)[0])
    fitted.save(tmp_path)
    read = FitResult.load(tmp_path)
    for candidate in fitted.candidates.candidates:
        composed = compose(pair, fitted, candidate.id)
        save(composed.graph, composed.tensors, tmp_path / "composed.safetensors")
        want = composed(x)
        assert torch.equal(load(tmp_path / "composed.safetensors")(x), want), candidate.id
        assert torch.equal(compose(pair, read, candidate.id)(x), want), candidate.id


def test_stitches_lie_the_same_when_they_are_made_and_when_they_are_read(fitted: FitResult, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    for found in (fitted, FitResult.load(tmp_path)):
        assert [name for name, tensor in found.stitches.items() if not lies_well(tensor)] == []


class _Anywhere(ArrayDataset):
    """Gives what a reader may give: arrays of numpy's, which it aligns to 16 bytes at best."""

    def _tensors(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = super()._tensors(inputs, targets)
        return at(x, 16), y


def test_what_members_read_lies_well(pair: list[Member]) -> None:
    found = list(batches(pair, _Anywhere(*images(), LABELS), "train", "cpu"))
    assert all(lies_well(x) for x, _ in found)
    same = batches(pair, dataset(), "train", "cpu")
    assert all(torch.equal(x, other) for (x, _), (other, _) in zip(found, same, strict=True))


def test_integers_and_truth_values_are_read_as_they_were(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("chosen", torch.tensor([True, False, True]))
            self.register_buffer("places", torch.tensor([2, 0, 1]))
            self.register_buffer("offset", torch.tensor([0.5, 1.5, 2.5], dtype=torch.bfloat16))
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, self.places].masked_fill(self.chosen, 7.0) * self.scale + self.offset.float()

    module, x = Mixed().eval(), torch.randn(4, 3)
    export(module, x, tmp_path / "mixed.safetensors")
    model = load(tmp_path / "mixed.safetensors")
    assert torch.equal(model(x), module(x))
    kinds = {tensor.dtype for tensor in model.tensors.values()}
    assert {torch.bool, torch.int64, torch.bfloat16, torch.float32} >= kinds >= {torch.bool, torch.int64}
