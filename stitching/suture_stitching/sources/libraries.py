"""Modules of well-known libraries, which carry what they read and give: timm, TorchXRayVision and torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.sources.source import NetworkSource


def of_module(module: nn.Module) -> NetworkSource:
    """Return a module with what it says about itself: the configuration of timm's, the labels of TorchXRayVision's."""
    if not isinstance(module, nn.Module):
        raise SutureError(
            "export.module",
            f"it is no torch.nn.Module, but a {type(module).__name__}",
            where="model",
            hint="of weights by name, make the network and load_state_dict them; only networks of PyTorch are exported",
        )
    library = type(module).__module__.partition(".")[0]
    if library == "timm":
        return _timm(module)
    if library == "torchxrayvision" and isinstance(getattr(module, "classifier", None), nn.Module):
        return _chest(module)
    return NetworkSource(module)


def of_weights(weights: object) -> NetworkSource | None:
    """Return the network of a member of torchvision's enumerations of weights; None for anything else.

    torchvision fetches weights that are not there.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(weights).__mro__}
    if "torchvision.models._api.WeightsEnum" not in kinds:
        return None
    models = importlib.import_module("torchvision.models")
    chosen: Any = weights
    name = next(name for name in models.list_models() if models.get_model_weights(name) is type(chosen))
    transforms, labels = chosen.transforms(), chosen.meta.get("categories")
    crop = getattr(transforms, "crop_size", None)
    described = {
        "value_range": (0.0, 1.0),
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "labels": labels and _different(labels),
    }
    shape = (len(transforms.mean), crop[0], crop[-1]) if crop else None
    note = f"from torchvision: {transforms.describe()}"
    known = {key: value for key, value in described.items() if value}
    return NetworkSource(models.get_model(name, weights=chosen).eval(), shape, known, [" ".join(note.split())])


def _different(labels: Sequence[str]) -> list[str]:
    """Return labels in which no two are alike: ImageNet has two cranes, a cardigan and a Cardigan."""
    folds = [folded(label) for label in labels]
    return [
        label if folds.count(fold) == 1 else f"{label} {index}"
        for index, (label, fold) in enumerate(zip(labels, folds, strict=True))
    ]


def _timm(module: nn.Module) -> NetworkSource:
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    config = config if isinstance(config, dict) else vars(config)
    mean, std, size = (config.get(name) for name in ("mean", "std", "input_size"))
    if not (mean and std and size):
        return NetworkSource(module)
    labels = config.get("label_names")
    classes = getattr(module, "num_classes", None)
    described = {
        "value_range": (0.0, 1.0),
        "mean": [float(number) for number in mean],
        "std": [float(number) for number in std],
        "labels": list(labels) if labels and len(labels) == classes else None,
    }
    note = (
        f"from timm's configuration: inputs {tuple(size)}, mean {tuple(mean)}, std {tuple(std)}, of pixels from 0 "
        "to 1; where it was trained on others, say --shape, --value-range, --mean and --std"
    )
    return NetworkSource(module, tuple(size), {name: value for name, value in described.items() if value}, [note])


class _Pathologies(nn.Module):
    """The labels of a TorchXRayVision classifier that have names, as probabilities.

    Where the library has operating points, a probability of one half is at each of them, as it computes it.
    """

    def __init__(self, network: nn.Module, kept: list[int], points: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("kept", torch.tensor(kept))
        self.points: Tensor | None
        self.register_buffer("points", points)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)[:, self.kept].sigmoid()
        if self.points is None:
            return scores
        below, above = scores / (2 * self.points), 1 - (1 - scores) / (2 * (1 - self.points))
        return torch.where(scores < self.points, below, above)


def _chest(module: Any) -> NetworkSource:
    targets = [str(name) for name in getattr(module, "targets", ())]
    points = getattr(module, "op_threshs", None)
    points = None if points is None else points.detach().flatten().float()
    named = [index for index, name in enumerate(targets) if name]
    kept = named if points is None else [index for index in named if not bool(points[index].isnan())]
    # Without the library's own last steps, which leave NaN in the weights and write by masks.
    network = _without_last_steps(module)
    shown = _Pathologies(network, kept, None if points is None else points[kept]).eval()
    described = {
        "task": "multilabel",
        "output": "probabilities",
        "labels": [targets[index] for index in kept],
        "value_range": (-1024.0, 1024.0),
    }
    left = [targets[index] for index in named if index not in kept]
    notes = ["from TorchXRayVision: one channel of 224 x 224, values from -1024 to 1024"]
    notes += [f"left out, for they have no operating point: {', '.join(left)}"] if left else []
    return NetworkSource(shown, (1, 224, 224), described, notes)


def _without_last_steps(module: Any) -> nn.Module:
    network = module.__new__(type(module))
    network.__dict__ = {**module.__dict__, "_buffers": {**module._buffers, "op_threshs": None}}
    network.apply_sigmoid = False
    assert isinstance(network, nn.Module)
    return network
