"""Weights from files that were pickled: tensors, numbers and texts are read, and nothing else that a pickle can do."""

from __future__ import annotations

import importlib
import io
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError

multiarray: Any = importlib.import_module("numpy._core.multiarray")
#: What training scripts keep beside tensors in a checkpoint: numbers of numpy, which cannot do anything.
_NUMBERS = [
    np.dtype, np.ndarray, multiarray.scalar, multiarray._reconstruct,
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)},
]  # fmt: skip
#: The same under the names that numpy 1 wrote.
_OLD = [(make, f"numpy.core.multiarray.{make.__name__}") for make in (multiarray.scalar, multiarray._reconstruct)]
#: Under which key a checkpoint has the weights: nnU-Net, Lightning, MONAI and timm, and training loops of one's own.
_KEYS = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net")
#: What wrappers put before the names of all weights: DistributedDataParallel, torch.compile, Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")


def read_checkpoint(content: bytes, where: str) -> dict[str, Any]:
    """Return a checkpoint without running anything that it holds; raises `SutureError` `source.checkpoint`."""
    with torch.serialization.safe_globals([*_NUMBERS, *_OLD]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how old the pickle is
        try:
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise SutureError(
                "source.checkpoint",
                f"holds more than weights, or is damaged: {_cause(error)}",
                where=where,
                hint="where it was trained, write the weights alone: torch.save(network.state_dict(), 'model.pt')",
            ) from None
    if not isinstance(checkpoint, Mapping):
        raise SutureError(
            "source.checkpoint",
            f"holds a {type(checkpoint).__name__}, not weights by name",
            where=where,
            hint="write torch.save(network.state_dict(), 'model.pt')",
        )
    return dict(checkpoint)


def _cause(error: Exception) -> str:
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names {named.group(1)[:100]}, which only running code can make"
    return str(error).strip().partition("\n")[0][:200]


def weights_key(checkpoint: Mapping[str, Any]) -> str | None:
    """Return under which key a checkpoint has its weights; None where they are all there is."""
    return next((key for key in _KEYS if isinstance(checkpoint.get(key), Mapping)), None)


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in a checkpoint by name."""
    key = weights_key(checkpoint)
    inner = checkpoint if key is None else checkpoint[key]
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def prefix_of(names: Collection[str]) -> str:
    """Return what a wrapper put before the names of most weights; empty where there is nothing."""
    return next((prefix for prefix in _WRAPPERS if 2 * sum(name.startswith(prefix) for name in names) > len(names)), "")


def _unwrapped(weights: Mapping[str, Tensor], own: Collection[str]) -> Mapping[str, Tensor]:
    """Return weights without what wrappers put before all of their names, until some are those of the network."""
    while not any(name in own for name in weights):
        prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in weights)), None)
        if prefix is None or not weights:
            break
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def fill(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """Return the network with exactly these weights; raises `SutureError` `source.weights` naming what differs."""
    own = network.state_dict()
    weights = _unwrapped(weights, own.keys())
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    other = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    problems = [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []
    problems += [f"{len(unknown)} are of no layer, such as {unknown[0]}"] if unknown else []
    problems += sorted(other)[:1]
    if problems:
        raise SutureError(
            "source.weights",
            f"the weights are not those of this {type(network).__name__}: {'; '.join(problems)}",
            where=where,
            hint="network and weights must come from one training; with another version of the library, export from it",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.load_state_dict(weights)
    return network.eval()
