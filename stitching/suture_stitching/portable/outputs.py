"""What a module returns: nested in plain tuples and dictionaries, its tensors by name, and which of them is meant."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from suture_contract.errors import SutureError

#: What the output of a network with several is called where it is meant: torchvision, Hugging Face, MONAI, nnU-Net.
_MEANT = ("logits", "out", "prediction", "pred", "output")


def plain_output(output: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a nested output as tuples and dictionaries only, with `leaf` applied to what is neither.

    A dataclass is a dictionary of its fields; what is None in a dictionary is not there.
    """
    if dataclasses.is_dataclass(output) and not isinstance(output, dict | type):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, dict):
        if not all(isinstance(name, str) for name in output):
            raise SutureError("export.output", "the keys of an output dictionary must be texts")
        return {name: plain_output(item, leaf) for name, item in output.items() if item is not None}
    if isinstance(output, list | tuple):
        return tuple(plain_output(item, leaf) for item in output)
    return leaf(output)


def named(output: Any, prefix: str = "") -> dict[str, Any]:
    """Return what a module returned by name: `logits`, `more.0`; places of a tuple are numbers or fields' names."""
    if dataclasses.is_dataclass(output) and not isinstance(output, dict | type):
        items = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(output, dict):
        items = list(output.items())
    elif isinstance(output, list | tuple):
        items = list(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    else:
        return {} if output is None else {prefix or "output": output}
    by_name: dict[str, Any] = {}
    for name, item in items:
        by_name |= named(item, f"{prefix}.{name}" if prefix else str(name))
    return by_name


def chosen(output: Any, inputs: Tensor, name: str | None) -> str:
    """Return the name of the output that is meant: `name`, the only one, or the one that is plainly the network's.

    That is one called `logits` or `out`, or the first of deep supervision, which has the size of `inputs`. Raises
    `SutureError` `export.outputs` with the names and shapes of all where it is open.
    """
    tensors = {own: value for own, value in named(output).items() if isinstance(value, Tensor)}
    if name is not None and name in tensors:
        return name
    shapes = ", ".join(f"{own} {tuple(tensor.shape)}" for own, tensor in tensors.items()) or "no tensor"
    if name is not None:
        raise SutureError("export.outputs", f"there is no output {name}; the module returns {shapes}", where="model")
    if len(tensors) == 1:
        return next(iter(tensors))
    for meant in _MEANT:
        if meant in tensors:
            return meant
    if not tensors:
        raise SutureError("export.outputs", "the module returns no tensor", where="model", hint="return its scores")
    first = next(iter(tensors))
    if _is_supervised(list(tensors.values()), inputs):
        return first
    raise SutureError(
        "export.outputs",
        f"the module returns {len(tensors)} outputs: {shapes}",
        where="model",
        hint=f"say which is meant: --output-name {first}, or output_name={first!r} in Python",
    )


def _is_supervised(maps: list[Tensor], inputs: Tensor) -> bool:
    """Say whether these are the maps of deep supervision: the first as large as the input, each other one smaller."""
    first, *others = maps
    same = all(x.dim() == first.dim() and x.shape[:2] == first.shape[:2] for x in others)
    if not same or first.dim() < 3 or first.shape[2:] != inputs.shape[2:]:
        return False
    sizes = [x.shape[2:].numel() for x in maps]
    return all(size < sizes[0] for size in sizes[1:])


def pick(output: Any, name: str) -> Tensor:
    """Return the output of this name as `(N, ...)` with two axes at least: a risk for each sample is `(N, 1)`."""
    tensor: Tensor = named(output)[name]
    if not tensor.is_floating_point():
        raise SutureError(
            "export.output",
            f"the module returns {str(tensor.dtype).removeprefix('torch.')} numbers, as argmax and comparisons give",
            where=name,
            hint="return what they are computed from: the scores of all labels",
        )
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor


@contextlib.contextmanager
def giving(module: torch.nn.Module, what: Callable[[Any], Any]) -> Iterator[None]:
    """Let `module` give `what` makes of its output, for a while."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: what(output))
    try:
        yield
    finally:
        handle.remove()


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a nested output in order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, Mapping) else output
    return [leaf for item in items for leaf in tensors_of(item)]
