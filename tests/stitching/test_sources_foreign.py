"""Models of other tools are told by what they are, with what to do instead; nothing of them is run."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from tests.stitching.bundles import run
from torch import nn

from suture_contract.errors import SutureError
from suture_stitching.sources import of_module, open_source

RAN: list[str] = []


def note_that_it_ran() -> None:
    RAN.append("ran")


class Runs:
    """A pickle of it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return note_that_it_ran, ()


def _hugging_face(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))


def _export(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "write", "what", "instead"),
    [
        ("a.pt2", _export, "archive of torch.export", "from your code"),
        ("renamed.bin", _export, "archive of torch.export", "from your code"),
        ("a.onnx", lambda path: path.write_bytes(b"\x08\x0a\x12"), "ONNX", "PyTorch network"),
        ("a.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5", "in PyTorch"),
        ("a.tflite", lambda path: path.write_bytes(b"\x1c\0\0\0TFL3"), "TensorFlow Lite", "in PyTorch"),
        ("a.pkl", lambda path: path.write_bytes(pickle.dumps(LogisticRegression())), "scikit-learn", "coef_"),
        ("xgb.json", lambda path: path.write_text('{"learner": {}}'), "XGBoost", "for trees"),
        ("own.pkl", lambda path: path.write_bytes(pickle.dumps(Runs())), "a pickle", "pickle.load(open('own.pkl'"),
        ("whole.pt", lambda path: torch.save({"model": Runs()}, path), "more than weights", "weights_only=False"),
        ("list.pt", lambda path: torch.save([1, 2], path), "holds a list", "weights_only=False"),
        ("w.safetensors", lambda path: save_file({"a": torch.zeros(2)}, path), "no network", "load_file('w.safet"),
        ("hf", _hugging_face, "model of transformers", "ViTForImageClassification.from_pretrained("),
        ("net.py", lambda path: path.write_text("network = None"), "is code", "net:NAME"),
        ("empty.pt", lambda path: path.touch(), "is empty", "again"),
    ],
)
def test_a_model_of_another_tool(tmp_path: Path, name: str, write: Any, what: str, instead: str) -> None:
    RAN.clear()
    pickle.loads(pickle.dumps(Runs()))
    assert RAN.pop() == "ran"
    write(tmp_path / name)
    with pytest.raises(SutureError, match=re.escape(what)) as refused:
        open_source(tmp_path / name)
    assert refused.value.code in ("source.foreign", "source.code")
    assert instead in str(refused.value.hint)
    assert RAN == []


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_function_that_it_writes_for_a_checkpoint_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, old: bool
) -> None:
    network = nn.Linear(3, 2)
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": weights, "epoch": 3}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(SutureError, match="weights, but no network") as refused:
        open_source(path)
    body = str(refused.value.hint).partition("def make(): ")[2].removesuffix("; return network")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Network": lambda: nn.Linear(3, 2), "torch": torch}
    exec(body, names)  # what the user would copy
    assert torch.equal(names["network"].weight, network.weight)


def test_a_name_with_py_and_what_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_of_mine.py").write_text("network = None")
    monkeypatch.chdir(tmp_path)
    result = run("net_of_mine.py:network", tmp_path / "out", "--shape", "3", "--license", "MIT")
    assert "leave .py out: net_of_mine:network" in result.output
    with pytest.raises(SutureError, match="but a OrderedDict") as refused:
        of_module(nn.Linear(2, 2).state_dict())  # type: ignore[arg-type]
    assert "load_state_dict" in str(refused.value.hint)
