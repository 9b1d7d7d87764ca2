"""Sizes at which a module may do otherwise than what was recorded of it.

Where a module, or torch for it, decides by a free size, the recording goes one way and torch notes a guard: what was
true of the size. A portable model has no guards. So module and file are compared where one of them does not hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import ShapeGuard, detect_fake_mode
from torch.export import ExportedProgram

_TORCH = str(Path(torch.__file__).parent)
#: How many shapes are looked at, and how many numbers the inputs may have for a module to be tried there.
_MOST, _NUMBERS = 4, 2**24


@dataclass(frozen=True)
class Elsewhere:
    """Shapes of all inputs at which a guard does not hold; which batch size or other size, and what decides by it."""

    shapes: tuple[tuple[int, ...], ...]
    is_batch: bool
    size: int
    decided: str

    def resized(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the inputs in these shapes: repeated, or their beginning."""
        return tuple(_resized(x, shape) for x, shape in zip(inputs, self.shapes, strict=True))

    @property
    def numel(self) -> int:
        """How many numbers the inputs have."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def is_tried(self) -> bool:
        """Whether a module can be run there in reasonable time and memory."""
        return self.numel <= _NUMBERS


def elsewhere(program: ExportedProgram, example: Sequence[Tensor]) -> list[Elsewhere]:
    """Return shapes at which `program`, recorded on `example`, may not be what the module does.

    Each differs from those of `example` in one free size, and is the nearest for its guard.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    if mode is None or mode.shape_env is None:
        return []
    names = set(program.graph_signature.user_inputs)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes = {
        size.node.expr: own
        for shape, x in zip(shapes, example, strict=True)
        for size, own in zip(shape, x.shape, strict=True)
        if isinstance(size, torch.SymInt) and size.node.expr.is_symbol
    }
    batch = _expression(shapes[0][0])
    places: dict[tuple[Any, int], Elsewhere] = {}
    for guard in {guard.expr: guard for guard in mode.shape_env.guards}.values():
        symbols = guard.expr.free_symbols
        for symbol in symbols if sizes.keys() >= symbols else ():
            others = _batches(sizes[symbol]) if symbol == batch else _lengths(sizes[symbol])
            size = next((size for size in others if not _holds(guard, {**sizes, symbol: size})), None)
            if size is not None and (symbol, size) not in places:
                there = tuple(_shape(shape, {**sizes, symbol: size}) for shape in shapes)
                places[symbol, size] = Elsewhere(there, symbol == batch, size, _decided(guard))
    return sorted(places.values(), key=lambda place: (not place.is_batch, place.numel))[:_MOST]


def _batches(size: int) -> Iterator[int]:
    return itertools.chain(range(size + 1, 65), (2**power + 1 for power in range(6, 14)))


def _lengths(size: int) -> Iterator[int]:
    """Yield other lengths of an axis, the nearest first; of very small ones networks make nothing."""
    for step in range(1, 33):
        yield from (other for other in (size + step, size - step) if 2 * other > size)
    yield from (size * 2**power + 1 for power in range(1, 6))


def _holds(guard: ShapeGuard, sizes: Mapping[Any, int]) -> bool:
    return guard.expr.subs(sizes) not in (False,)  # what stays open says nothing about these sizes


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _shape(shape: Sequence[Any], sizes: Mapping[Any, int]) -> tuple[int, ...]:
    return tuple(int(sizes.get(_expression(size), _expression(size))) for size in shape)


def _decided(guard: ShapeGuard) -> str:
    """Return the author's line that decides by a size, or the function of torch that does."""
    place = guard.sloc.framework_loc
    if place is None or isinstance(place, str):
        return "a line of it"
    line = (place.line or "").strip()
    return f"`{line[:120]}`" if line and not place.filename.startswith(_TORCH) else f"torch's {place.name}()"


def _resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x
