"""Record what a module does: `torch.export` with the batch free, in the raw form that keeps layers whole.

The raw form is kept because decomposing it makes an LSTM many times slower and bakes sizes in.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.overrides import TorchFunctionMode

from suture_contract.errors import SutureError
from suture_stitching.portable import recurrent
from suture_stitching.portable.rewrite import (
    detach_factories,
    inline_autocast,
    is_in_place,
    make_functional,
    storage_of,
)


def trace(module: torch.nn.Module, example: Sequence[Tensor], *, dynamic_spatial: bool) -> ExportedProgram:
    """Return the functional recording of `module` on `example`; raises `SutureError` (`export.*`).

    Dimension 0 of every input is the batch and stays free; the others are free where the module allows it if
    `dynamic_spatial`.
    """
    shapes = [
        {
            axis: Dim.DYNAMIC if axis == 0 else Dim.AUTO if dynamic_spatial and size > 1 else Dim.STATIC
            for axis, size in enumerate(x.shape)
        }
        for x in example
    ]
    with _quietly():
        try:
            with _Whole(dynamic_spatial):
                program = torch.export.export(
                    module, tuple(example), dynamic_shapes=_shapes_for(module, shapes), strict=False
                )
        except Exception as error:  # torch.export raises dozens of types; each of them means the same to the caller
            raise _tracing_error(error) from error
        inline_autocast(program, example[0].device.type)
        _refuse_mutation(program)
        detach_factories(program)
        if not make_functional(program):
            program = program.run_decompositions({})
    return program


class _Whole(TorchFunctionMode):
    """Record by twins what torch would take apart: recurrent layers, and where lengths are free `max_pool1d`."""

    def __init__(self, free: bool) -> None:
        super().__init__()
        self._free = free

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._free and func in (F.max_pool1d, torch.max_pool1d) and not kwargs.get("return_indices"):
            # torch's own fixes the length to that of the example.
            return _max_pool1d(*args, **kwargs)
        return (recurrent.whole(func, args) or func)(*args, **kwargs)


def _max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    def row(size: Any, other: int) -> tuple[int, int]:
        return (other, size[0] if isinstance(size, list | tuple) else size)

    stride = row(stride, 1) if stride else row(kernel_size, 1)
    rows = input.unsqueeze(-2)
    return F.max_pool2d(rows, row(kernel_size, 1), stride, row(padding, 0), row(dilation, 1), ceil_mode).squeeze(-2)


def _shapes_for(module: torch.nn.Module, shapes: list[dict[int, Any]]) -> Any:
    """Return the shapes in the nesting that torch.export wants: varargs count as one argument, a tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (tuple(shapes),)
    return tuple(shapes)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode for a while, and every part of it back as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Record attention as its parts instead of one fused kernel, and without torch's advice to its developers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _tracing_error(error: Exception) -> SutureError:
    text = str(error)
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "specialized" in text or "ConstraintViolation" in type(error).__name__:
        return SutureError(
            "export.fixed_batch",
            f"the module only works for one batch size: {first_line[:400]}",
            hint="take the batch size from the input, as in x.flatten(1) or x.reshape(x.shape[0], -1)",
        )
    if isinstance(error, NotImplementedError) and "inequality" in text:
        return SutureError(
            "export.free_size",
            f"torch cannot tell which sizes the module allows: {first_line[:400]}",
            hint="record it for one size (dynamic_spatial=False), or round down in its pooling (ceil_mode=False)",
        )
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return SutureError(
            "export.data_dependent",
            f"the module takes a decision from the values it computes: {first_line[:400]}",
            hint="replace `if tensor...:` and sizes taken from values by torch.where or fixed sizes",
        )
    return SutureError(
        "export.failed",
        f"the module cannot be recorded ({type(error).__name__}): {first_line[:400]}",
        hint="run module(example) once to see that it works, and keep forward() free of anything but tensors",
    )


def _refuse_mutation(program: ExportedProgram) -> None:
    signature = program.graph_signature
    state = {
        spec.arg.name: spec.target
        for spec in signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    changed = [
        str(spec.target)
        for spec in signature.output_specs
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
    ]
    owners = {storage_of(node): state[node.name] for node in program.graph.nodes if node.name in state}
    for node in program.graph.nodes:
        if is_in_place(node) and storage_of(node.args[0]) in owners:
            changed.append(str(owners[storage_of(node.args[0])]))
    if changed:
        raise SutureError(
            "export.mutation",
            f"the module changes its own tensor {changed[0]} while it runs",
            where=changed[0],
            hint="a shared model must be frozen: do not update buffers when self.training is False",
        )
