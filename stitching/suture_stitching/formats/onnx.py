"""Turn a portable model, stitched ensembles included, into an ONNX file that onnxruntime has been seen to run alike.

    written = export_onnx(load("model.safetensors"), "model.onnx", metadata=metadata)

The model is recorded from its graph of allowed operators under names of its own, never from text in its file. The
ONNX model runs in onnxruntime at other batch sizes, and where sizes are free at other sizes, before it gets its name.
Needs the extra `onnx`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_contract.files import replacing
from suture_contract.model.graph import Graph, Input, Node
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.formats.trials import trial_batches
from suture_stitching.portable.export import relative_difference
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.portable.schemas import bind

#: A protocol buffer holds at most 2 GiB.
_MAX_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class OnnxExported:
    """A written ONNX model: what it reads and gives by name, and the worst difference seen, relative to the outputs.

    Sizes are numbers, or texts where they are free: `batch`, `size_2`, or a formula of those.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    opset: int
    difference: float


def export_onnx(
    model: PortableModel,
    path: str | os.PathLike[str],
    *,
    metadata: ModelMetadata | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
    tolerance: float = 1e-4,
) -> OnnxExported:
    """Write `model` as ONNX to `path` and return what was written.

    Free sizes stay free. `metadata` gives inputs and outputs their names and goes along as `metadata_props`: the whole
    as `suture.json`, and `task` and `labels` (a JSON list) by themselves. `example`, a batch for each input, is what
    the two are compared on; random numbers by default. Raises `SutureError` (`onnx.*`) naming the operator and module
    that ONNX has no form for, or the difference when onnxruntime's outputs are over `tolerance`, relative to the size
    of each output. Nothing is left behind then.
    """
    _check_installed()
    path = Path(path)
    _refuse_what_onnx_lacks(model)
    # The file is made and checked where onnxruntime always runs.
    model = PortableModel(model.program, {name: tensor.cpu() for name, tensor in model.tensors.items()})
    batches = trial_batches(model, example)
    with _quietly():
        proto = _convert(model, _record(model, next(batches)), metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        difference = max(_compare(temporary, model, batches, tolerance))
    return OnnxExported(
        path,
        {value.name: _shape(value) for value in proto.graph.input},
        {value.name: _shape(value) for value in proto.graph.output},
        next(opset.version for opset in proto.opset_import if not opset.domain),
        difference,
    )


def _check_installed() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):  # torch's exporter uses the last
        if find_spec(package) is None:
            raise SutureError("onnx.not_installed", f"{package} is not installed", hint=how_to_install("onnx"))


def _refuse_what_onnx_lacks(model: PortableModel) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.tensors.values())
    if size > _MAX_BYTES:
        raise SutureError("onnx.too_large", f"{size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB")
    for index, node in enumerate(model.graph.nodes):
        if node.op == "aten.lstm.input" and _is_projected(node):
            raise _no_form(index, node, "an LSTM with projections (proj_size)")
    for name, tensor in model.tensors.items():
        if tensor.dtype == torch.bfloat16:
            raise SutureError(
                "onnx.dtype",
                "onnxruntime does not compute in bfloat16 on every machine",
                where=f"tensor {name}",
                hint="export the model from float32 weights",
            )


def _is_projected(node: Node) -> bool:
    arguments = bind(node)
    params, layers = arguments["params"], arguments["num_layers"]
    assert isinstance(params, tuple)
    assert isinstance(layers, int)
    return len(params) != layers * (2 if arguments["bidirectional"] else 1) * (4 if arguments["has_biases"] else 2)


def _no_form(index: int, node: Node, what: str) -> SutureError:
    module = f", module {node.module}" if node.module else ""
    return SutureError(
        "onnx.operator",
        f"ONNX has no form for {what}",
        where=f"n{index} {node.op}{module}",
        hint="use the portable model itself, or replace that layer and train again",
    )


def _record(model: PortableModel, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    shapes = tuple(
        {
            axis: Dim.DYNAMIC if axis == 0 else Dim.AUTO if size is None else Dim.STATIC
            for axis, size in enumerate(spec.shape)
        }
        for spec in model.graph.inputs
    )
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=(shapes,), strict=False)


def _convert(model: PortableModel, program: ExportedProgram, metadata: ModelMetadata | None) -> Any:
    """Return the ONNX model (`onnx.ModelProto`) with names, free sizes and metadata that people understand."""
    import onnx

    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        assert converted is not None
        proto = converted.model_proto
    except Exception as error:  # torch's exporter raises many types, private ones among them
        raise _conversion_error(model.graph, error) from error
    _name_sizes(proto, model.graph.inputs)
    _name_values(proto, _names(model.graph, metadata))
    proto.producer_name = "suture"
    proto.graph.name = "model"
    if metadata is not None:
        properties = {"task": metadata.task, "suture.json": metadata.to_json()}
        if metadata.labels is not None:
            properties["labels"] = json.dumps(metadata.labels, ensure_ascii=False)
        onnx.helper.set_model_props(proto, properties)
    return proto


def _conversion_error(graph: Graph, error: Exception) -> SutureError:
    """Return an error that names the operator which torch's exporter mentions, and where the model has it."""
    mentioned = re.search(r"\baten[.:]+(\w+)", str(error))
    for index, node in enumerate(graph.nodes):
        if mentioned is not None and node.op.startswith(f"aten.{mentioned[1]}."):
            return _no_form(index, node, node.op)
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SutureError("onnx.failed", f"torch cannot turn the model into ONNX: {first_line[:400]}")


def _names(graph: Graph, metadata: ModelMetadata | None) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs: the metadata's where it names them all, or what the nesting says."""
    inputs = ["input"] if len(graph.inputs) == 1 else [f"input_{index}" for index in range(len(graph.inputs))]
    outputs = _output_names(graph.output, "")
    if metadata is not None and len(metadata.inputs) == len(inputs):
        inputs = list(metadata.inputs)
    if metadata is not None and len(metadata.outputs) == len(outputs):
        outputs = list(metadata.outputs)
    return inputs, outputs


def _output_names(output: Any, prefix: str) -> list[str]:
    items: list[tuple[Any, Any]]
    if isinstance(output, dict):
        items = list(output.items())
    elif isinstance(output, tuple):
        items = list(enumerate(output))
    else:
        return [prefix or "output"]
    names: list[str] = []
    for key, item in items:
        own = str(key) if isinstance(key, str) else f"output_{key}" if not prefix else str(key)
        names += _output_names(item, f"{prefix}.{own}" if prefix else own)
    return names


def _name_sizes(proto: Any, specs: Sequence[Input]) -> None:
    """Call the free sizes `batch`, `size_2`, ... instead of torch's numbered symbols."""
    names: dict[str, str] = {}
    for index, (value, spec) in enumerate(zip(proto.graph.input, specs, strict=True)):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if spec.shape[axis] is not None and dimension.dim_param:
                raise SutureError("onnx.failed", "a fixed size became free", where=value.name)
            if spec.shape[axis] is None and not dimension.dim_param:
                raise SutureError(
                    "onnx.fixed_size",
                    f"size {axis} of input {index} is free in the model and {dimension.dim_value} in its ONNX form",
                    hint="give an example of another size",
                )
            if dimension.dim_param:
                of = f"input_{index}_" if len(specs) > 1 else ""
                names.setdefault(dimension.dim_param, "batch" if axis == 0 else f"{of}size_{axis}")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dimension.dim_param)


def _name_values(proto: Any, names: tuple[list[str], list[str]]) -> None:
    """Rename inputs and outputs, wherever they are mentioned, to names that nothing else has."""
    graph = proto.graph
    taken: set[str] = set()
    _for_each_node(graph, lambda node: taken.update((*node.input, *node.output)))
    renamed: dict[str, str] = {}
    for values, wanted in zip((graph.input, graph.output), names, strict=True):
        for value, name in zip(values, wanted, strict=True):
            while name in taken:
                name += "_"
            taken.add(name)
            renamed[value.name] = name

    def rename(node: Any) -> None:
        for mentioned in (node.input, node.output):
            mentioned[:] = [renamed.get(name, name) for name in mentioned]

    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    _for_each_node(graph, rename)


def _for_each_node(graph: Any, do: Callable[[Any], object]) -> None:
    for node in graph.node:
        do(node)
        for attribute in node.attribute:  # bodies of loops read the values around them
            if attribute.HasField("g"):
                _for_each_node(attribute.g, do)


def _compare(
    path: Path, model: PortableModel, batches: Iterator[tuple[Tensor, ...]], tolerance: float
) -> Iterator[float]:
    """Yield the relative difference of every output for every batch; refuse one over `tolerance`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
    except Exception as error:  # onnxruntime's own, which share no base
        raise SutureError("onnx.failed", f"onnxruntime refuses the model: {str(error)[:400]}") from error
    for inputs in batches:
        with torch.no_grad():
            outputs = model(*inputs)
        try:
            actual = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise SutureError("onnx.failed", f"onnxruntime fails for {shapes}: {str(error)[:400]}") from error
        for value, want, have in zip(session.get_outputs(), _leaves(outputs), actual, strict=True):
            difference = relative_difference(want, torch.from_numpy(have))
            if not difference <= tolerance:
                raise SutureError(
                    "onnx.differs",
                    f"onnxruntime's output differs from the model's by {difference:.2g} (relative) for inputs "
                    f"{[tuple(x.shape) for x in inputs]}; at most {tolerance:.2g} is allowed",
                    where=value.name,
                )
            yield difference


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [leaf for item in (output.values() if isinstance(output, dict) else output) for leaf in _leaves(item)]


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch's and onnxscript's advice to their developers to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
