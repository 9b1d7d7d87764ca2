"""Run, read and write portable models.

model = load("model.safetensors")
features = model.features(["n17"], x)          # only what n17 needs runs
output = model.resume({"n17": stitched}, x)    # only what follows n17 runs
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.model.format import FORMAT, VERSION, PortableHeader, check_file, check_opened, leaves
from suture_contract.model.graph import TENSOR, Graph, Input, Ref
from suture_contract.model.graph_json import graph_to_json
from suture_stitching.portable.dry_run import Budget, measure, with_outputs
from suture_stitching.portable.layout import settled
from suture_stitching.portable.program import Program, RunPlan, Slots, nest
from suture_stitching.portable.schemas import TENSOR_KIND, TORCH_DTYPES
from suture_stitching.portable.tensors import save_tensors

#: Arguments that hold running statistics, which no gradient may change.
_STATISTICS = {"aten.batch_norm.default": (3, 4), "aten.instance_norm.default": (3, 4)}


class PortableModel(torch.nn.Module):
    """A frozen model that runs from its graph and tensors alone.

    `tensors` maps the names in the graph to tensors. They become parameters that need no gradient (running statistics
    and integers become buffers) under names of their own; gradients flow through the activations. Inputs and outputs
    are as in `graph.inputs` and `graph.outputs`, batch first. A tensor that lies otherwise in memory than one that was
    loaded is copied, so that the same numbers give the same bits.
    """

    #: What a pass may take. Where it is set, the first pass with inputs of each size is preceded by a dry run.
    budget: Budget | None = None

    def __init__(self, graph: Graph | Program, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._allowed: set[tuple[torch.Size, ...]] = set()
        self.program = Program(graph) if isinstance(graph, Graph) else graph
        self.graph = graph = self.program.graph
        named = [str(node.args[0]) for node in graph.nodes if node.op == TENSOR]
        if missing := set(named) - tensors.keys():
            raise SutureError("model.tensors", f"the graph names tensor {min(missing)}, which is not given")
        self._own_names = {name: f"t{index}" for index, name in enumerate(dict.fromkeys(named))}
        statistics = _statistics(graph)
        for name, own in self._own_names.items():
            tensor = settled(tensors[name].detach())
            if tensor.is_floating_point() and name not in statistics:
                self.register_parameter(own, torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(own, tensor)
        self._output_nodes = frozenset(ref.node for ref in leaves(graph.output))
        self.eval()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The model's tensors by their names in the graph."""
        return {name: self._tensor(name) for name in self._own_names}

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output for `inputs`, nested as the original module's; raises `SutureError` (`input.*`)."""
        return self.resume({}, *inputs)

    def features(self, points: Sequence[str], *inputs: Tensor) -> dict[str, Tensor]:
        """Return the values at `points` (such as `n17`); only what they need runs."""
        wanted = {point: self._node(point) for point in points}
        slots = self._run(frozenset(wanted.values()), {}, inputs)
        return {point: slots[node] for point, node in wanted.items()}

    def resume(self, values: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        """Return the output as if the points in `values` had these values; only what the output then needs runs.

        What bypasses the points is computed from `inputs`.
        """
        by_node = {self._node(point): value for point, value in values.items()}
        return nest(self.graph.output, self._run(self._output_nodes, by_node, inputs))

    def stream(self, nodes: Collection[int], *inputs: Tensor) -> Iterator[tuple[int, Any]]:
        """Yield `nodes` with their values in the order of the graph; no value is held longer than it is needed."""
        targets = frozenset(nodes)
        plan, slots = self._started(targets, {}, inputs)
        yield from self.program.stream(plan, slots, targets)

    def _node(self, point: str) -> int:
        index = int(point[1:]) if point[:1] == "n" and point[1:].isdecimal() and len(point) < 9 else -1
        if not 0 <= index < len(self.graph.nodes) or self.program.kinds[index] != TENSOR_KIND:
            raise SutureError("point.unknown", f"{point} is no tensor in this model", hint="see points.find_points")
        return index

    def _run(self, targets: frozenset[int], values: Mapping[int, Tensor], inputs: Sequence[Tensor]) -> Slots:
        plan, slots = self._started(targets, values, inputs)
        self.program.run(plan, slots)
        return slots

    def _started(
        self, targets: frozenset[int], values: Mapping[int, Tensor], inputs: Sequence[Tensor]
    ) -> tuple[RunPlan, Slots]:
        """Return what to run for `targets`, and the slots with all that is known before."""
        plan = self.program.plan(targets, frozenset(values))
        if inputs or plan.inputs:
            check_inputs(self.graph.inputs, inputs)
            self._check_budget(inputs)
        known = next(iter(inputs), None) if inputs else next(iter(values.values()), None)
        slots = self.program.slots(None if known is None else known.device)
        for node, name in plan.tensors:
            slots[node] = self._tensor(name)
        for node, index in plan.inputs:
            slots[node] = inputs[index]
        for node, value in values.items():
            slots[node] = value
        return plan, slots

    def _check_budget(self, inputs: Sequence[Tensor]) -> None:
        """Raise `SutureError` (`model.over_budget`) where a pass with inputs of these sizes takes more than allowed."""
        if self.budget is None or torch.compiler.is_compiling():
            return
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._allowed:
            measure(self.program, self.tensors, shapes, self.budget)
            self._allowed.add(shapes)

    def _tensor(self, name: str) -> Tensor:
        own = self._own_names[name]
        tensor = self._parameters.get(own)
        return self.get_buffer(own) if tensor is None else tensor


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    input_shapes: Sequence[Sequence[int]] | None = None,
    budget: Budget | None = None,
) -> PortableModel:
    """Return the model in the file at `path` on `device`.

    Every static check runs first, and given `input_shapes` (with the batch) a dry run against `budget`, before any
    tensor is read. Without them, if there is a budget, a pass with inputs of each new size is preceded by one. Raises
    `SutureError` (`model.*`). Run files of strangers in a process of their own.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = check_opened(file, where=path.name)
            program = Program(header.graph)
            if input_shapes is not None:
                measure(program, header.tensors, input_shapes, budget)
            tensors = {name: _read(file, header, name, path.name).to(device) for name in header.tensors}
    except OSError as error:
        raise SutureError("model.unreadable", error.strerror or "cannot be read", where=str(path)) from error
    model = PortableModel(program, tensors)
    model.budget = budget if input_shapes is None else None
    return model


def save(graph: Graph, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> PortableHeader:
    """Write a graph and its tensors as a portable model at `path`, check what was written, and return its header.

    A file that was there before is replaced in one step; on failure nothing is left behind.
    """
    with replacing(path) as temporary:
        return write(graph, tensors, temporary)


def write(graph: Graph, tensors: Mapping[str, Tensor], path: Path) -> PortableHeader:
    """Write a graph and its tensors to `path` in place, check what was written, and return its header."""
    if not graph.outputs:
        graph = with_outputs(graph, tensors)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": VERSION, "graph": graph_to_json(graph), "torch": torch.__version__}
    save_tensors(content, path, metadata)
    _order_metadata(path)
    header = check_file(path)
    Program(header.graph)
    return header


def _order_metadata(path: Path) -> None:
    """Sort the header's metadata, which are written in any order: the same model has the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "only the order changes"
        file.seek(8)
        file.write(text.ljust(length))


def check_inputs(expected: Sequence[Input], inputs: Sequence[Tensor]) -> None:
    """Raise `SutureError` (`input.*`) unless `inputs` have the number, shapes and types that a graph expects."""
    if len(inputs) != len(expected):
        raise SutureError("input.count", f"the model reads {len(expected)} tensor(s), {len(inputs)} were given")
    for index, (spec, tensor) in enumerate(zip(expected, inputs, strict=True)):
        if len(tensor.shape) != len(spec.shape) or any(
            want is not None and want != have for want, have in zip(spec.shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
            raise SutureError(
                "input.shape", f"has shape {tuple(tensor.shape)}, the model reads ({wanted})", where=f"input {index}"
            )
        if tensor.dtype != TORCH_DTYPES[spec.dtype]:
            raise SutureError(
                "input.dtype",
                f"holds {str(tensor.dtype).removeprefix('torch.')}, the model reads {spec.dtype}",
                where=f"input {index}",
            )


def _statistics(graph: Graph) -> set[str]:
    """Return the names of the tensors that are running statistics."""
    names = set()
    for node in graph.nodes:
        for position in _STATISTICS.get(node.op, ()):
            value = node.args[position] if position < len(node.args) else None
            if isinstance(value, Ref) and graph.nodes[value.node].op == TENSOR:
                names.add(str(graph.nodes[value.node].args[0]))
    return names


def _read(file: BinaryIO, header: PortableHeader, name: str, where: str) -> Tensor:
    """Return a tensor in memory of its own: what is mapped from a file lies at any address, and changes with it."""
    info = header.tensors[name]
    content = torch.empty(info.end - info.start, dtype=torch.uint8)
    file.seek(header.data_start + info.start)
    if file.readinto(content.numpy().data) != len(content):  # type: ignore[attr-defined]
        raise SutureError("model.unreadable", f"tensor {name} changed while it was read", where=where)
    if info.dtype == "bool" and (content > 1).any():
        raise SutureError(
            "model.tensors",
            f"tensor {name} holds other values than true and false",
            where=where,
            hint="the file is damaged or was not written by Suture; export it again",
        )
    return content.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)
