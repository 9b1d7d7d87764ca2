"""TorchScript, weights by themselves and one's own modules come in, or are refused with what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stitching.bundles import run, same, save_script, scripted, scripted_source, spleen
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.sources import open_source


def test_torchscript_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    save_script(scripted(network, torch.rand(1, 1, 8, 8)), tmp_path / "net.pt")
    unsaid = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT")
    assert "source.shape" in unsaid.output
    wrong = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT", "--shape", "1,9,9")
    assert "source.script" in wrong.output
    result = run(tmp_path / "net.pt", tmp_path / "out", "--labels", "a,b,c", "--license", "MIT", "--shape", "1,8,8")
    assert result.exit_code == 0, result.output
    assert same(network, tmp_path / "out", 1, 8, 8)


def test_torchscript_that_touches_files_is_refused(tmp_path: Path) -> None:
    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_file("/etc/hostname", False, 1)

    save_script(scripted_source(Reader()), tmp_path / "net.pt")
    with pytest.raises(SutureError, match="aten::from_file") as refused:
        open_source(tmp_path / "net.pt", (4,))
    assert refused.value.code == "source.script"


def test_weights_without_a_network(tmp_path: Path) -> None:
    torch.save(spleen().state_dict(), tmp_path / "model.pt")
    with pytest.raises(SutureError) as refused:
        open_source(tmp_path / "model.pt")
    assert (refused.value.code, "MODULE:NAME" in str(refused.value.hint)) == ("source.code", True)
    (tmp_path / "notes.txt").write_text("no network")
    with pytest.raises(SutureError, match="no file of a kind"):
        open_source(tmp_path / "notes.txt")


def network_of_one_layer() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    "saved",
    [
        lambda network: network.state_dict(),
        lambda network: {"epoch": 3, "model_state_dict": network.state_dict(), "optimizer": {"lr": 0.1}},
        lambda network: network,
    ],
)
def test_the_code_that_a_refusal_of_weights_shows_works(tmp_path: Path, monkeypatch, saved) -> None:
    network = network_of_one_layer()
    torch.save(saved(network), tmp_path / "model.pt")
    with pytest.raises(SutureError) as refused:
        open_source(tmp_path / "model.pt")
    code = "def make():" + str(refused.value.hint).partition("def make():")[2].partition(", in a module")[0]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"torch": torch, "Network": lambda: nn.Linear(2, 2)}
    exec(code, space)
    assert torch.equal(space["make"]().weight, network.weight)


FAILS = "    return nn.Linear(4, 2).load_state_dict({})"
OWN = """
import torch
from torch import nn

half, double = nn.Linear(4, 2).half(), nn.Linear(4, 2).double()


class Two(nn.Module):
    def forward(self, image, table):
        return image + table


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.last = nn.Embedding(100, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.embedding(x).mean(1))


def asks(size):
    return nn.Linear(size, 2)


def fails():
    return nn.Linear(4, 2).load_state_dict({})
"""


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("half", "export.example", "module.float()"),
        ("double", "export.example", "module.float()"),
        ("Two", "export.example", "one input"),
        ("Tokens", "export.example", "--dtype int64"),
        ("asks", "export.own_code", "'size'"),
        ("fails", "export.own_code", f"own_networks.py:{OWN.splitlines().index(FAILS) + 1}"),
        ("half_", "export.import", "did you mean 'half'?"),
    ],
)
def test_what_is_wrong_with_ones_own_network_is_said(tmp_path: Path, monkeypatch, name, code, told) -> None:
    (tmp_path / "own_networks.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    given = ("--shape", "4", "--labels", "a,b", "--license", "MIT")
    found = run(f"own_networks:{name}", tmp_path / "out", *given)
    shown = " ".join(found.output.split())
    assert code in shown
    assert told in shown or told in found.output.replace("\n", "")
    assert "shape (N, C" not in shown or name == "Tokens"
    if name == "Tokens":
        whole = run("own_networks:Tokens", tmp_path / "out", *given, "--dtype", "int64", "--value-range", "0,99")
        assert whole.exit_code == 0, whole.output
        assert ModelMetadata.read(tmp_path / "out" / "suture.json").inputs["table"].dtype == "int64"
    del sys.modules["own_networks"]


def test_an_error_in_ones_own_module_is_told_with_its_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "own_broken.py").write_text("import math\n\nmath.sqrt(-1)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = run("own_broken:net", tmp_path / "out", "--shape", "4", "--license", "MIT")
    assert "export.own_code" in found.output
    assert "own_broken.py:3" in "".join(found.output.split())


@pytest.mark.parametrize(("name", "doubted"), [("Drawn", True), ("Loaded", False), ("Noted", False)])
def test_a_class_that_draws_its_weights_by_chance_is_doubted(tmp_path: Path, monkeypatch, name, doubted) -> None:
    code = "from torch import nn\n\nclass Drawn(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 2)\n"
    code += "\nclass Loaded(Drawn):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.weight.data.fill_(1)\n        self.weight.data[0, 0] = 2\n        self.bias.data.zero_()\n"
    code += "\nclass Noted(Loaded):\n    def get_extra_state(self):\n        return id(self)\n"
    code += "    def set_extra_state(self, state):\n        pass\n"
    (tmp_path / "own_classes.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    shown = run(f"own_classes:{name}", tmp_path / "out", "--shape", "4", "--labels", "a,b", "--license", "MIT")
    del sys.modules["own_classes"]
    assert shown.exit_code == 0, shown.output
    assert ("is it trained?" in " ".join(shown.output.split())) == doubted
