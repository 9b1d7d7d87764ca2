"""Record what a module does: `torch.export` with the batch free, in the raw form that keeps layers whole.

The raw form is kept because decomposing it makes an LSTM many times slower and bakes sizes in.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from suture_contract.errors import SutureError
from suture_stitching.portable.diagnosis import explained, is_fixed_batch, packed, sizes_of_batches
from suture_stitching.portable.rewrite import (
    detach_factories,
    inline_blocks,
    is_in_place,
    make_functional,
    storage_of,
)
from suture_stitching.portable.state_values import StateValues
from suture_stitching.portable.twins import twin_of

_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")


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
        program = _exported(module, tuple(example), _shapes_for(module, shapes), free=dynamic_spatial)
        inline_blocks(program, example[0].device.type)
        _refuse_mutation(program)
        detach_factories(program)
        if not make_functional(program):
            program = program.run_decompositions({})
    return program


def _exported(module: torch.nn.Module, example: tuple[Tensor, ...], shapes: Any, *, free: bool) -> ExportedProgram:
    """Return torch's recording; where the batch size became a number, the second one says by which line."""

    def record() -> ExportedProgram:
        with _Whole(module, free):
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)

    lines: list[str] = []
    try:
        try:
            return record()
        except SutureError:
            raise
        except Exception as error:
            if not is_fixed_batch(error):
                raise
        with sizes_of_batches() as lines:
            return record()
    except SutureError:
        raise
    except Exception as error:  # torch.export raises dozens of types; each of them means the same to the caller
        scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
        raise explained(error, next(filter(None, lines), ""), next(iter(scripted), "")) from error


class _Whole(TorchFunctionMode):
    """Record by twins what torch would take apart or fix the size of, and know what `module` reads of its state."""

    def __init__(self, module: torch.nn.Module, free: bool) -> None:
        super().__init__()
        self._free = free
        self._state = StateValues(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "_pack_padded_sequence":
            raise packed()
        other = self._state.read(func, args, kwargs) or twin_of(func, args, kwargs, free=self._free)
        result = func(*args, **kwargs) if other is None else other()
        self._state.note(func, args, kwargs, result)
        return result


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
    """Record attention as its parts instead of one fused kernel, and without torch's advice to its developers.

    torch looks at a mask's values for whether it is causal, to choose a kernel. A recording has no values; the mask
    itself is applied in any case.
    """
    fused, detect = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        # Of what fails torch prints the graph it has so far, after a line in its log.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            _LOG.disabled = True
            yield
    finally:
        _LOG.disabled = False
        torch.backends.mha.set_fastpath_enabled(fused)
        transformer._detect_is_causal_mask = detect


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
            hint="a shared model must be frozen: do not update buffers when self.training is False, and give "
            "nn.Embedding no max_norm",
        )
