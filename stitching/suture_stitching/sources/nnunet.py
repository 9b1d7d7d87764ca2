"""nnU-Net v2: the network of a results folder, made from its plans and filled with a fold's checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from suture_contract.errors import SutureError
from suture_stitching.sources.checkpoint import fill, read_checkpoint, weights_of
from suture_stitching.sources.files import read, read_mapping
from suture_stitching.sources.source import NetworkSource

#: Checkpoints of a fold, the first that is there.
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
#: Where a plan's classes may come from.
_NETWORKS, _LAYERS = "dynamic_network_architectures.architectures.", "torch.nn."
_INSTALL = "pip install --no-deps dynamic-network-architectures"
_FROM_CODE = "export the network that your trainer builds from your code: MODULE:NAME"


def open_results(results: Path, path: Path, shape: tuple[int, ...] | None) -> NetworkSource:
    """Return the network of nnU-Net's folder `results`; `path` is it, or one of its folds.

    Raises `SutureError` (`source.*`).
    """
    plans, dataset = read_mapping(results / "plans.json"), read_mapping(results / "dataset.json")
    fold = path if path != results else _only_fold(results)
    file = next((fold / name for name in _CHECKPOINTS if (fold / name).is_file()), None)
    if file is None:
        raise SutureError("source.weights", f"has none of {', '.join(_CHECKPOINTS)}", where=str(fold))
    checkpoint = read_checkpoint(read(file), str(file))
    configuration = _configuration(plans, results, checkpoint)
    try:
        labels = _labels(dataset, str(results))
        channels = _channels(dataset)
        described, notes, unsaid = _prepared(plans, configuration, len(channels))
        network = _network(configuration, len(channels), len(labels), str(results))
        sizes = (len(channels), *map(int, configuration["patch_size"]))
        spacing = [float(size) for size in configuration["spacing"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown_plans(str(error), str(results)) from None
    fill(network, weights_of(checkpoint), str(file))
    described |= {"task": "segmentation", "labels": labels, "spacing": spacing}
    described |= {"channels": channels} if len(channels) > 1 else {}
    return NetworkSource(network, shape or sizes, described, notes, unsaid)


def _only_fold(results: Path) -> Path:
    folds = sorted(place for place in results.glob("fold_*") if any((place / name).is_file() for name in _CHECKPOINTS))
    if len(folds) != 1:
        raise SutureError(
            "source.fold",
            f"has {len(folds)} trained folds" + (f": {', '.join(fold.name for fold in folds)}" if folds else ""),
            where=str(results),
            hint=f"name the one that is meant: {folds[0]}" if folds else "train one, or name the folder of a fold",
        )
    return folds[0]


def _configuration(plans: Mapping[str, Any], results: Path, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration that was trained, with what it takes over from others."""
    arguments = checkpoint.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    name = name or results.name.rpartition("__")[2]
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping) or not isinstance(configurations.get(name), Mapping):
        raise _unknown_plans(f"there is no configuration {name}", str(results))
    merged: dict[str, Any] = {}
    for _ in configurations:
        merged = {**configurations[name], **merged}
        name = configurations[name].get("inherits_from")
        if not isinstance(configurations.get(name), Mapping):
            return merged
    return merged


def _labels(dataset: Mapping[str, Any], where: str) -> list[str]:
    """Return the labels by their numbers; raises `SutureError` `source.task` for regions, which overlap."""
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        raise SutureError(
            "source.task",
            "was trained on regions, which overlap, and the labels of a segmentation exclude each other",
            where=where,
            hint="train it on labels, without regions_class_order",
        )
    numbers = {name: int(value[0] if isinstance(value, list) else value) for name, value in labels.items()}
    return sorted(numbers, key=numbers.__getitem__)


def _channels(dataset: Mapping[str, Any]) -> list[str]:
    names = dataset.get("channel_names") or dataset["modality"]
    return [str(names[key]) for key in sorted(names, key=int)]


def _prepared(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return what `suture.json` says of the intensities, notes, and what it has no words for."""
    schemes = list(configuration["normalization_schemes"])
    spaced = f"each image is resampled to {configuration['spacing']} mm, axes as nnU-Net orders them (z, y, x)"
    if schemes == ["CTNormalization"] * channels:
        # The same numbers clip and scale all channels only where there is one.
        properties = [plans["foreground_intensity_properties_per_channel"][str(index)] for index in range(channels)]
        low, high = ({float(of[name]) for of in properties} for name in ("percentile_00_5", "percentile_99_5"))
        if len(low) == len(high) == 1:
            bounds = (low.pop(), high.pop())
            mean, std = ([float(of[name]) for of in properties] for name in ("mean", "std"))
            note = f"in the dataset: intensity = [{bounds[0]:g}, {bounds[1]:g}]"
            return {"value_range": bounds, "mean": mean, "std": std, "modality": "CT"}, [spaced, note], []
    if set(schemes) == {"RGBTo01Normalization"}:
        return {"value_range": (0.0, 1.0)}, [spaced], []
    if set(schemes) == {"NoNormalization"}:
        return {}, [spaced], []
    masked = " inside the body" if any(configuration.get("use_mask_for_norm") or ()) else ""
    what = {
        "ZScoreNormalization": f"standardised by its own mean and deviation{masked}",
        "RescaleTo01Normalization": "scaled from its own range onto 0 to 1",
    }
    unsaid = [f"channel {index} of a volume is {what.get(s, f'passed through {s}')}" for index, s in enumerate(schemes)]
    return {}, [spaced], unsaid


def _network(configuration: Mapping[str, Any], channels: int, labels: int, where: str) -> nn.Module:
    plan = configuration["architecture"] if "architecture" in configuration else _of_older_plans(configuration)
    arguments = dict(plan["arch_kwargs"])
    for name in plan["_kw_requires_import"]:
        if arguments.get(name) is not None:
            arguments[name] = _located(arguments[name], _LAYERS, where)
    arguments["deep_supervision"] = False
    make = _located(plan["network_class_name"], _NETWORKS, where)
    network = make(input_channels=channels, num_classes=labels, **arguments)
    assert isinstance(network, nn.Module)
    return network


def _located(name: str, within: str, where: str) -> Any:
    """Return a class of torch.nn or of nnU-Net's own networks, by the name in a plan."""
    if not name.startswith(within):
        raise SutureError(
            "source.network",
            f"its plans name {name[:120]}, which is not of {within[:-1]}",
            where=where,
            hint=_FROM_CODE,
        )
    # Their modules moved between versions; all networks of a U-Net are in this one.
    module = f"{_NETWORKS}unet" if within == _NETWORKS else name.rpartition(".")[0]
    try:
        made = getattr(importlib.import_module(module), name.rpartition(".")[2])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(within.partition(".")[0]):
            raise SutureError(
                "source.not_installed", "dynamic_network_architectures is not installed", where=where, hint=_INSTALL
            ) from None
        raise
    except AttributeError:
        raise SutureError("source.network", f"there is no {name[:120]}", where=where, hint=_FROM_CODE) from None
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise SutureError("source.network", f"{name[:120]} is no layer", where=where, hint=_FROM_CODE)
    return made


def _of_older_plans(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture as newer plans say it, of plans that were written before nnU-Net 2.5."""
    kind, dimensions = configuration["UNet_class_name"], len(configuration["patch_size"])
    stages = len(configuration["n_conv_per_stage_encoder"])
    widest, base = configuration["unet_max_num_features"], configuration["UNet_base_num_features"]
    return {
        "network_class_name": f"{_NETWORKS}unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(base * 2**stage, widest) for stage in range(stages)],
            "conv_op": f"torch.nn.Conv{dimensions}d",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": configuration[
                "n_conv_per_stage_encoder"
            ],
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


def _unknown_plans(why: str, where: str) -> SutureError:
    return SutureError("source.plans", f"its plans are not those of nnU-Net v2: {why}", where=where, hint=_FROM_CODE)
