"""What cannot be exported is named, and nothing is left behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.stitching.networks import MixedPrecision
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_stitching.portable.export import export


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


class ByBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 8 else x


class Parts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part.tanh() for part in x.split(16)])


@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        (ByBatch(), (2, 3), "9 samples than with fewer: `return x * 2 if"),
        (Parts(), (2, 3), "17 samples"),
        (Parts(), (2, 2**20), "17 samples"),  # more than what is tried
    ],
)
def test_what_is_done_for_large_batches_alone_is_refused(
    tmp_path: Path, module: nn.Module, shape: tuple[int, int], says: str
) -> None:
    with pytest.raises(SutureError) as refused:
        export(module, torch.randn(shape), tmp_path / "model.safetensors")
    assert refused.value.code == "export.fixed_batch"
    assert says in refused.value.message
    assert not list(tmp_path.iterdir())


class Limited(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] <= 32
        return x.tanh() if x.shape[0] <= 16 else torch.cat([x[:16].tanh(), x[16:].tanh()])


def test_a_decision_by_the_batch_that_changes_nothing_is_no_matter(tmp_path: Path) -> None:
    export(Limited(), torch.randn(2, 3), tmp_path / "model.safetensors")


class ByLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[-1] > 100 else x


class PaddedIfNeeded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        more = -x.shape[-1] % 4
        if more:
            x = F.pad(x, (0, more))
        return F.avg_pool1d(x, 4)


class RoundedUp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, math.ceil(x.shape[-1] / 4) * 4 - x.shape[-1]))


def test_fractions_of_free_sizes_are_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(SutureError, match="on sizes that are free") as refused:
        export(RoundedUp(), torch.randn(2, 3, 48), tmp_path / "model.safetensors", dynamic_spatial=True)
    assert "-(-a // b) instead of math.ceil(a / b)" in str(refused.value.hint)


@pytest.mark.parametrize("module", [ByLength(), PaddedIfNeeded()])
def test_what_is_done_at_some_sizes_alone_is_refused_where_sizes_are_free(tmp_path: Path, module: nn.Module) -> None:
    path, example = tmp_path / "model.safetensors", torch.randn(2, 3, 48)
    export(module, example, path)
    path.unlink()
    with pytest.raises(SutureError) as refused:
        export(module, example, path, dynamic_spatial=True)
    assert refused.value.code == "export.free_size"
    assert "if " in refused.value.message
    assert not list(tmp_path.iterdir())
