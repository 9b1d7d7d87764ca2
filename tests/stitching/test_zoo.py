"""Networks that hospitals train: the file alone gives their outputs and gradients, at other batch and spatial sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from benchmarks.zoo import ZOO, Entry
from tests.stitching.outputs import flat
from torch import Tensor

from suture_contract.errors import SutureError
from suture_stitching.portable.export import Exported, export
from suture_stitching.portable.runtime import load

#: Their spatial sizes are part of what they are: position embeddings, layers over all pixels, or rounding up.
FIXED_SIZE = {
    *("mlp", "cnn", "lstm", "lstm-projected", "gru", "transformer", "scan-and-table"),
    *("monai-swinunetr", "monai-swinunetr-3d", "monai-unetr", "monai-vit", "vit-1d"),
    *("monai-flexibleunet", "monai-seresnet50"),
}


def worst_difference(want: list[Tensor], have: list[Tensor]) -> float:
    """Return the worst difference of two lists of tensors, relative to the size of each tensor."""
    assert [tensor.shape for tensor in want] == [tensor.shape for tensor in have]
    return max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in zip(want, have, strict=True) if a.numel()
    )


def outputs_and_gradients(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradients of their sum of squares: those of the inputs."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    module.zero_grad()
    outputs = flat(module(*leaves))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves if leaf.requires_grad]


@pytest.fixture(scope="module")
def exported_as(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export a network of the zoo, the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def exported(name: str) -> Exported:
        entry = ZOO[name]
        return export(
            entry.build(small=True),
            entry.batch(2, small=True),
            folder / f"{name}.safetensors",
            tolerance=1e-6,
            dynamic_spatial=entry.other is not None,
        )

    return exported


@pytest.mark.parametrize("name", ZOO)
def test_a_network_makes_the_journey(name: str, exported_as: Callable[[str], Exported]) -> None:
    entry = ZOO[name]
    module, exported = entry.build(small=True), exported_as(name)
    model = load(exported.path).requires_grad_()
    originals = dict(module.named_parameters())
    for size in (1, 5):
        inputs = entry.batch(size, small=True, seed=size)
        want, want_gradients = outputs_and_gradients(module, inputs)
        have, have_gradients = outputs_and_gradients(model, inputs)
        assert worst_difference(want, have) <= 1e-6
        if want_gradients:
            assert worst_difference(want_gradients, have_gradients) <= 1e-5
    compared = {
        key: tensor for key, tensor in model.tensors.items() if key in originals and originals[key].grad is not None
    }
    assert len(compared) == len({id(own) for own in originals.values() if own.grad is not None})
    assert worst_difference([originals[key].grad for key in compared], [own.grad for own in compared.values()]) <= 1e-5
    if entry.other is not None:
        assert all(set(spec.shape[2:]) == {None} for spec in exported.graph.inputs)
        _same_at_another_size(entry, module, model)


def _same_at_another_size(entry: Entry, module: torch.nn.Module, model: torch.nn.Module) -> None:
    inputs = entry.batch(3, small=True, other=True, seed=3)
    with torch.no_grad():
        assert worst_difference(flat(module(*inputs)), flat(model(*inputs))) <= 1e-6


def test_which_sizes_stay_free_is_known() -> None:
    assert {name for name, entry in ZOO.items() if entry.other is None} == FIXED_SIZE


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_torch_cannot_leave_free_are_named(tmp_path: Path) -> None:
    entry = ZOO["monai-seresnet50"]
    with pytest.raises(SutureError) as refused:
        export(entry.build(small=True), entry.batch(2, small=True), tmp_path / "m.safetensors", dynamic_spatial=True)
    assert refused.value.code == "export.free_size"
    assert "dynamic_spatial" in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_nesting_survives(exported_as: Callable[[str], Exported]) -> None:
    for name in ("scan-and-table", "three-sequences", "monai-vit"):
        output = load(exported_as(name).path)(*ZOO[name].batch(3, small=True))
        if name == "scan-and-table":
            assert list(output) == ["logits", "embeddings"]
            assert output["embeddings"][1][0].shape == (3, 4)
        elif name == "three-sequences":
            assert output[1]["weights"].shape == (3, 3, 1, 8, 8, 8)
        else:
            assert len(output[1]) == 2
