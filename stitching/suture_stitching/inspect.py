"""What a portable model is, found out without running it: for people before they publish, fit or accept one.

    found = inspect("model.safetensors")
    found.costs[0].flops                # of one sample
    [point.name for point in found.points if point.clean]

Only the header is read: static checks, then dry runs on the meta device, where tensors have shapes and no memory. So
a stranger's file may be inspected anywhere.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from suture_contract.errors import SutureError
from suture_contract.inspection import Inspection, PointDescription, Published, SizeCost, TensorDescription
from suture_contract.model.format import METADATA, PortableHeader, check_against, check_file, find_model
from suture_contract.model.graph import Input
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.features.points import find_points
from suture_stitching.portable.dry_run import UNLIMITED, Budget, measure
from suture_stitching.portable.program import Program
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.portable.schemas import TORCH_DTYPES

#: Tried in turn where a model leaves its sizes free and nobody says which.
_USUAL_SIZES = (224, 128, 96, 64, 32, 16)


#: How long looking at a file may take.
SECONDS = 60.0


def inspect(
    path: str | os.PathLike[str],
    *,
    metadata: str | os.PathLike[str] | None = None,
    sizes: Sequence[Sequence[int]] = (),
    seconds: float = SECONDS,
) -> Inspection:
    """Describe the portable model at `path`, a file or a folder with a `model.safetensors`.

    `metadata` is its `suture.json`, by default the one beside it, if any. `sizes` are spatial sizes of the input at
    which to find the costs; stitch points are those at the first. By default they are what the model or its metadata
    say, or a usual size. Raises `SutureError` (`model.*`, `metadata.*`, `input.shape`, `points.too_many`), also where
    it takes more than `seconds` (`model.over_budget`); a single step of it may take as much memory as a pass of the
    model has tensors: limit the process for files of strangers, as `suture inspect` does.
    """
    budget = replace(UNLIMITED, until=time.monotonic() + seconds)
    file = find_model(path)
    header = check_file(file)
    described = _metadata(file, metadata)
    if described is not None:
        check_against(header, described)
    program = Program(header.graph)
    shapes = [_shapes(header.graph.inputs, size) for size in sizes] or [
        _default_shapes(program, header, described, budget)
    ]
    costs = []
    for shape in shapes:
        cost = measure(program, header.tensors, shape, budget).cost
        inputs = tuple(map(tuple, shape))
        costs.append(
            SizeCost(inputs=inputs, flops=cost.flops, peak_bytes=cost.peak_bytes, bound_bytes=cost.bound_bytes)
        )
    graph, tensors = header.graph, header.tensors.values()
    return Inspection(
        file=str(file),
        size=header.size,
        version=header.metadata["version"],
        torch=header.metadata["torch"] if header.metadata["torch"].isprintable() else "?",
        task=described.task if described else None,
        labels=described.labels if described else None,
        license=described.license if described else None,
        inputs=_described(graph.inputs, list(described.inputs) if described else []),
        outputs=_described(graph.outputs, list(described.outputs) if described else []),
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        weight_bytes=sum(tensor.end - tensor.start for tensor in tensors),
        nodes=len(graph.nodes),
        operators=dict(Counter(n.op for n in graph.nodes if n.op not in ("input", "tensor")).most_common()),
        costs=tuple(costs),
        points=_points(header, shapes[0], budget),
        leaves=_leaves(header, described),
        stays=(
            "your code: the graph names operators of torch, nothing of yours",
            "your data: no sample, no file name and no number of one is in the file; but weights learnt from few "
            "samples can give some of them away",
            "optimiser state, training history and gradients",
        ),
    )


def meta_model(header: PortableHeader) -> PortableModel:
    """Return the model without its weights: on the meta device it has shapes only."""
    tensors = {
        name: torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
        for name, info in header.tensors.items()
    }
    return PortableModel(header.graph, tensors)


def _metadata(file: Path, stated: str | os.PathLike[str] | None) -> ModelMetadata | None:
    path = Path(stated) if stated is not None else file.with_name(METADATA)
    if stated is None and not path.exists():
        return None
    return ModelMetadata.read(path)


def _shapes(specs: Sequence[Input], size: Sequence[int]) -> list[list[int]]:
    """Return the shape of one sample of each input, with `size` as the first one's spatial size."""
    shapes: list[list[int]] = []
    for index, spec in enumerate(specs):
        sizes = [1, *spec.shape[1:]]
        if index == 0 or None in sizes:
            place = len(sizes) - len(size)
            if place < 1 or any(
                want is not None and want != have for want, have in zip(sizes[place:], size, strict=True)
            ):
                wanted = ", ".join("any" if known is None else str(known) for known in spec.shape)
                raise SutureError(
                    "input.shape",
                    f"the size {' x '.join(map(str, size))} does not fit an input of ({wanted})",
                    where=f"input {index}",
                    hint="give as many numbers as there are free sizes at the end of its shape",
                )
            sizes[place:] = size
        if None in sizes:
            raise SutureError("input.shape", "more sizes than these are free", where=f"input {index}")
        shapes.append([known for known in sizes if known is not None])
    return shapes


def _default_shapes(
    program: Program, header: PortableHeader, metadata: ModelMetadata | None, budget: Budget
) -> list[list[int]]:
    specs = header.graph.inputs
    stated = list(metadata.inputs.values()) if metadata else []

    def filled(usual: int) -> list[list[int]]:
        shapes = []
        for index, spec in enumerate(specs):
            known = [1, stated[index].num_channels, *stated[index].spatial_shape] if stated else [1]
            known += [None] * (len(spec.shape) - len(known))
            pairs = zip(spec.shape, known, strict=False)
            shapes.append([1 if not axis else want or have or usual for axis, (want, have) in enumerate(pairs)])
        return shapes

    for usual in _USUAL_SIZES:
        try:
            measure(program, header.tensors, filled(usual), budget)
        except SutureError as error:
            if error.code == "model.over_budget":
                raise
            failure = error
            continue
        return filled(usual)
    raise failure


def _described(specs: Sequence[Input], names: Sequence[str]) -> tuple[TensorDescription, ...]:
    return tuple(
        TensorDescription(name=names[index] if index < len(names) else "", shape=spec.shape, dtype=spec.dtype)
        for index, spec in enumerate(specs)
    )


def _points(header: PortableHeader, shapes: Sequence[Sequence[int]], budget: Budget) -> tuple[PointDescription, ...]:
    """Return the stitch points at this size; none where only some of several inputs' sizes are known."""
    try:
        points = find_points(meta_model(header), shapes[0][1:], budget)
    except SutureError as error:
        if error.code != "points.shape":
            raise
        return ()
    fields = ("name", "module", "shape", "depth", "clean", "bypassed")
    return tuple(PointDescription(**{field: getattr(point, field) for field in fields}) for point in points)


def _leaves(header: PortableHeader, metadata: ModelMetadata | None) -> tuple[Published, ...]:
    numbers = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    modules = sorted({node.module for node in header.graph.nodes} - {""})
    rows = [
        ("weights", f"{numbers:,} numbers in {len(header.tensors)} tensors, with the tensors' names"),
        ("operations", f"{len(header.graph.nodes):,}, by name and argument: the architecture"),
        ("names of modules", f"{len(modules)}" + (f", such as {', '.join(modules[:4])}" if modules else "")),
        ("version of torch", header.metadata["torch"] if header.metadata["torch"].isprintable() else "?"),
    ]
    if metadata is None:
        rows.append(("suture.json", "not there yet; publishing needs one"))
    else:
        rows += [("labels", ", ".join(metadata.labels))] if metadata.labels else []
        document = metadata.model_dump(by_alias=True, exclude_none=True, exclude={"labels"})
        rows.append(("suture.json", "all it says: " + ", ".join(name for name, value in document.items() if value)))
        learnt = metadata.training_data
        if learnt is not None and learnt.n is not None:
            rows.append(("number of samples", f"{learnt.n:,} it was trained on"))
    return tuple(Published(what=what, how_much=how_much) for what, how_much in rows)
