"""Everyday lines of `forward` become part of a portable model, or the message says what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.stitching.idioms import IDIOMS, REFUSED, Between

from suture_contract.errors import SutureError
from suture_contract.model.operators import OPERATORS
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load


def example(samples: int, seed: int) -> torch.Tensor:
    return torch.randn(samples, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IDIOMS)
def test_the_file_computes_what_the_line_does(tmp_path: Path, name: str) -> None:
    module = Between(IDIOMS[name])
    exported = export(module, example(2, 0), tmp_path / "m.safetensors")
    model, x = load(exported.path), example(4, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), module(x), rtol=1e-5, atol=1e-6)
    # Whatever the line makes lies where its input does: a device of shapes alone works with nothing from elsewhere.
    assert model.to("meta")(x.to("meta")).device.type == "meta"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_its_cause_and_a_substitute(tmp_path: Path, name: str) -> None:
    step, cause, substitute = REFUSED[name]
    with pytest.raises(SutureError) as refused:
        export(Between(step), example(2, 0), tmp_path / "m.safetensors")
    assert cause in str(refused.value)
    assert substitute in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_of_what_is_refused_torch_prints_no_graphs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SutureError):
        export(Between(REFUSED["if x.min() < 0"][0]), example(2, 0), tmp_path / "m.safetensors")
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_no_operator_that_is_written_by_others_is_on_the_list() -> None:
    from suture_stitching.portable.convert import _listed_name
    from suture_stitching.portable.decompose import OWN

    assert not OPERATORS & set(map(_listed_name, OWN))


def test_operators_of_other_libraries_are_told_from_torchs_own() -> None:
    from suture_stitching.portable.diagnosis import instead_of

    assert "what mylib does by torch's own" in instead_of("mylib.attention.default")
    assert "F.grid_sample" in instead_of("torchvision.deform_conv2d.default")
    assert "edges" in instead_of("aten.histc.default")
    assert instead_of("aten.erfinv.default").endswith("express it by others")
