"""Models of other tools, told by their names and first bytes alone: what each is, and what to do instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from suture_contract.errors import SutureError

_FROM_CODE = "a function of yours that makes the network and fills it is exported, MODULE:NAME: "
_AGAIN = "write the network in PyTorch, copy its weights over, and export that from your code: MODULE:NAME"
_TREES = (
    "only networks of PyTorch become portable: a linear model is an nn.Linear with its coef_ and intercept_; for trees "
    "train a network, such as an MLP, on the same data"
)
_MADE_OF = "export the PyTorch network that it was made of, from your code: MODULE:NAME"

#: How many bytes of a file are looked at.
_LOOKED_AT = 2**16
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
#: The number that old versions of torch.save begin with, as a pickle.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: By libraries that are named in a pickle.
_LIBRARIES = {b"sklearn": "scikit-learn", b"xgboost": "XGBoost", b"lightgbm": "LightGBM", b"catboost": "CatBoost"}


def is_old_torch(path: Path) -> bool:
    """Say whether it was written by torch.save before version 1.6: a pickle, and no zip archive."""
    return _beginning(path).startswith(_OLD_TORCH)


def foreign_file(path: Path, names: list[str]) -> SutureError | None:
    """Return what to say of a file of another tool, of which nothing is run; None where it is of no known kind.

    `names` are the files in it, where it is a zip archive.
    """
    start, kind = _beginning(path), path.suffix.lower()
    if not start:
        return _refused(path, "is empty", "write or download it again")
    if kind == ".py":
        return _refused(path, "is code", f"name what is exported in it, without .py: {path.stem}:NAME")
    if kind == ".pt2" or any(
        "/archive_format" in name or name.endswith("serialized_exported_program.json") for name in names
    ):
        return _refused(path, "is an archive of torch.export, which can run code when it is opened", _MADE_OF)
    for test, what, instead in _KINDS:
        if test(start, kind):
            return _refused(path, what, instead)
    if kind == ".keras" or any(name.endswith("model.weights.h5") for name in names):
        return _refused(path, "is a model of Keras", _AGAIN)
    if kind == ".safetensors":
        return _refused(
            path,
            "holds weights, but no network",
            f"{_FROM_CODE}def make(): network = Network(); "
            f"network.load_state_dict(safetensors.torch.load_file({path.name!r})); return network. A portable model is "
            "published with its folder: suture publish FOLDER",
        )
    if start.startswith(_PICKLES) or kind in (".pkl", ".pickle", ".joblib"):
        library = next((name for word, name in _LIBRARIES.items() if word in start), None)
        if library is not None:
            return _refused(path, f"is a pickled model of {library}", _TREES)
        return _refused(
            path,
            "is a pickle, which runs code when it is opened",
            f"{_FROM_CODE}def make(): return pickle.load(open({path.name!r}, 'rb')). It runs code from the file, so "
            "only with a file of your own",
        )
    return None


def foreign_folder(path: Path) -> SutureError | None:
    """Return what to say of a folder of another tool; None where it is of no known kind."""
    if (path / "saved_model.pb").is_file():
        return _refused(path, "is a SavedModel of TensorFlow", _AGAIN)
    if (path / "suture.json").is_file() and (path / "model.safetensors").is_file():
        return _refused(path, "is a portable model already", f"suture publish {path} PARTY/NAME")
    if (path / "config.json").is_file():
        try:
            made_by = json.loads((path / "config.json").read_bytes()).get("architectures")
        except (OSError, ValueError, AttributeError):
            return None
        if isinstance(made_by, list) and made_by:
            return _refused(
                path,
                f"is a model of transformers, {str(made_by[0])[:80]}",
                f"{_FROM_CODE}def make(): return transformers.{str(made_by[0])[:80]}.from_pretrained({str(path)!r})",
            )
    return None


_KINDS: tuple[tuple[Callable[[bytes, str], bool], str, str], ...] = (
    (
        lambda start, kind: kind in (".onnx", ".ort"),
        "is an ONNX file, which holds no gradients and cannot be cut open",
        _MADE_OF,
    ),
    (lambda start, kind: start.startswith(b"\x89HDF"), "is an HDF5 file, such as Keras writes", _AGAIN),
    (lambda start, kind: start[4:8] == b"TFL3" or kind == ".tflite", "is a model of TensorFlow Lite", _AGAIN),
    (
        lambda start, kind: (kind == ".json" and b'"learner"' in start) or kind in (".ubj", ".bst"),
        "is a model of XGBoost",
        _TREES,
    ),
    (lambda start, kind: start.startswith(b"tree\nversion="), "is a model of LightGBM", _TREES),
    (lambda start, kind: kind == ".cbm", "is a model of CatBoost", _TREES),
)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LOOKED_AT)
    except OSError as error:
        raise SutureError("source.file", f"cannot be read: {error.strerror}", where=str(path)) from None


def _refused(path: Path, what: str, instead: str) -> SutureError:
    return SutureError("source.foreign", what, where=str(path), hint=instead)
