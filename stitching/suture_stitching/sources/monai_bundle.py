"""MONAI bundles: metadata, network and weights, and of the preprocessing what `suture.json` has words for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from suture_contract.errors import SutureError
from suture_stitching.sources.bundle_config import BundleConfig
from suture_stitching.sources.bundle_transforms import ARGUMENTS, Prepared
from suture_stitching.sources.checkpoint import fill, read_checkpoint, weights_of
from suture_stitching.sources.files import Place, read, read_mapping
from suture_stitching.sources.source import NetworkSource
from suture_stitching.sources.torchscript import open_script

#: Of which configurations the network is read, the first that is there.
_CONFIGS = ("inference", "evaluate", "train")
_SUFFIXES = ("json", "yaml", "yml")


def open_bundle(bundle: Place, shape: tuple[int, ...] | None) -> NetworkSource:
    """Return the network of a MONAI bundle; raises `SutureError` (`source.*`)."""
    metadata = read_mapping(bundle / "configs" / "metadata.json")
    reads, gives = (_tensor(metadata, side, str(bundle)) for side in ("inputs", "outputs"))
    config = _config(bundle)
    described, prepared = _described(metadata, reads, gives), Prepared()
    if config is not None:
        described["task"] = _task(config, described["task"], gives, str(bundle))
        for item in config.transforms("preprocessing", "preprocessing_transforms", "preprocess"):
            prepared.add(item["_target_"], {key: config.value(item[key]) for key in item.keys() & ARGUMENTS})
    described |= prepared.description
    shape = shape or _shape(reads)
    network = _network(bundle, config, shape)
    return NetworkSource(network, shape, described, prepared.notes, prepared.unsaid)


def _network(bundle: Place, config: BundleConfig | None, shape: tuple[int, ...] | None) -> nn.Module:
    """Return what `network_def` makes of models/model.pt; where that cannot be, models/model.ts."""
    weights, script = bundle / "models" / "model.pt", bundle / "models" / "model.ts"
    if config is not None and weights.is_file():
        try:
            network = config.network()
        except SutureError:
            if not script.is_file():
                raise
        else:
            return fill(network, weights_of(read_checkpoint(read(weights), str(weights))), str(weights))
    if script.is_file():
        return open_script(read(script), str(script), shape).module
    raise SutureError(
        "source.weights",
        "there is neither models/model.pt with a configs/inference.json nor models/model.ts",
        where=str(bundle),
        hint="download the whole bundle: python -m monai.bundle download NAME --bundle_dir FOLDER",
    )


def _config(bundle: Place) -> BundleConfig | None:
    for name in _CONFIGS:
        for suffix in _SUFFIXES:
            place = bundle / "configs" / f"{name}.{suffix}"
            if place.is_file():
                return BundleConfig(read_mapping(place), str(place))
    return None


def _tensor(metadata: Mapping[str, Any], side: str, where: str) -> dict[str, Any]:
    """Return what `network_data_format` says of the only input or output; raises `SutureError` `source.metadata`."""
    formats = metadata.get("network_data_format")
    tensors = formats.get(side) if isinstance(formats, Mapping) else None
    listed = list(tensors.values()) if isinstance(tensors, Mapping) else []
    if len(listed) != 1 or not isinstance(listed[0], dict):
        raise SutureError(
            "source.metadata",
            f"network_data_format names {len(listed)} {side} in configs/metadata.json, not one",
            where=where,
            hint="a network with several is exported from your code, with one input and output: MODULE:NAME"
            if listed
            else "say there what the network reads and gives, as the bundles of MONAI's model zoo do",
        )
    return listed[0]


def _shape(reads: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return an input's shape, where all of its sizes are numbers: a bundle may also say "16*n"."""
    sizes = [reads.get("num_channels"), *(reads.get("spatial_shape") or [None])]
    return tuple(size for size in sizes if isinstance(size, int)) if all(isinstance(s, int) for s in sizes) else None


def _named(tensor: Mapping[str, Any]) -> list[str] | None:
    names = tensor.get("channel_def")
    if not isinstance(names, Mapping) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        return None
    return [str(names[key]) for key in sorted(names, key=int)]


def _described(metadata: Mapping[str, Any], reads: Mapping[str, Any], gives: Mapping[str, Any]) -> dict[str, Any]:
    labels, metrics = _named(gives), metadata.get("eval_metrics")
    kind = str(gives.get("format", "")).lower()
    spread = any(size != 1 for size in gives.get("spatial_shape") or ())
    task = "segmentation" if "segment" in kind or (spread and "classif" not in kind) else "classification"
    if task == "segmentation" and gives.get("num_channels") == 1 and labels is not None and len(labels) == 1:
        labels = ["background", *labels]
    value_range, channels = reads.get("value_range"), _named(reads)
    plain = isinstance(value_range, list) and len(value_range) == 2 and value_range[0] < value_range[1]
    fields = {
        "task": task,
        "labels": labels,
        "value_range": tuple(value_range) if plain and value_range is not None else None,
        "modality": reads.get("modality") or None,
        # The only channel is mostly called "image": no name to find it by.
        "channels": channels if channels is not None and 1 < len(channels) == reads.get("num_channels") else None,
        "description": metadata.get("description"),
        "intended_use": metadata.get("intended_use"),
        "training_data": metadata.get("data_source"),
        "license": metadata.get("license"),
        "authors": [metadata["authors"]] if isinstance(metadata.get("authors"), str) else metadata.get("authors"),
        "references": metadata.get("references") or None,
        "eval_metrics": {name: v for name, v in metrics.items() if isinstance(v, int | float)}
        if isinstance(metrics, Mapping)
        else None,
    }
    return {name: value for name, value in fields.items() if value}


def _task(config: BundleConfig, task: str, gives: Mapping[str, Any], where: str) -> str:
    """Return what the network does, by how its outputs are squashed afterwards."""
    ends = config.transforms("postprocessing", "postprocessing_transforms", "postprocess")
    activations = [item for item in ends if item["_target_"].rpartition(".")[2].startswith("Activations")]
    several = gives.get("num_channels", 1) != 1
    if not (several and any(config.value(item.get("sigmoid", False)) is True for item in activations)):
        return task
    if task == "segmentation":
        raise SutureError(
            "source.task",
            "labels of this segmentation overlap (a sigmoid for each), and those of a segmentation exclude each other",
            where=where,
            hint="export a network from your code that gives one channel for each label that excludes the others, or "
            "that one label alone with one channel",
        )
    return "multilabel"
