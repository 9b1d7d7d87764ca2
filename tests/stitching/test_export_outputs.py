"""Exporting a network of several outputs: which one is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.graph import Input
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load


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
