"""Which values of a pass may be written over, because nobody will read them again.

A portable graph has no operator that changes its arguments: a file could do harm with one. What a module did in place
(`nn.ReLU(inplace=True)`) therefore became a new tensor at export, and so did each sum of a stitched ensemble. On a
processor, a new map of some megabytes costs several times what its arithmetic does: its pages have to be found first.
So the interpreter puts such a result where the first argument was, if that is memory of the pass's own that dies there.
The values are the same, bit for bit: the operator is, and so is where its arguments lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from suture_contract.model.graph import Node, Ref, references
from suture_stitching.portable.schemas import SIZE_KIND, Kind, schema_of


def _same_in_place(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    function: Callable[..., Tensor] = getattr(getattr(torch.ops.aten, packet + "_"), overload or "default")._op
    return function


def _full_name(name: str) -> str:
    return f"aten.{name}" if "." in name else f"aten.{name}.default"


#: A value that may be in the memory of more than so many others is written over by nobody, nor are these.
_MOST_OWNERS = 16
#: Element by element, with a result of the first argument's size wherever the others do not broadcast it.
_IN_PLACE: Mapping[str, Callable[..., Tensor]] = {
    _full_name(name): _same_in_place(name)
    for name in (
        *("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "addcmul"),
        *("relu", "leaky_relu", "elu", "silu", "hardswish", "sigmoid", "tanh"),
    )
}
#: Operators that always return memory of their own.
_NEW = frozenset(
    {
        *_IN_PLACE,
        *map(
            _full_name,
            (
                *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
                *("linear", "matmul", "batch_norm", "instance_norm", "group_norm", "layer_norm", "cat"),
            ),
        ),
    }
)
#: Operators that return all elements of their first argument, each once, in its memory or in new memory.
_VIEWS = frozenset(
    map(_full_name, ("view", "reshape", "permute", "transpose.int", "flatten.using_ints", "unflatten.int", "unsqueeze"))
)
assert not any(schema_of(op).returns[0].alias_info for op in _NEW)


def overwriting(
    nodes: Sequence[Node],
    kinds: Sequence[Kind],
    order: Sequence[int],
    last_reader: Mapping[int, int],
    wanted: Collection[int],
) -> set[int]:
    """Return which of the nodes that run, in this `order`, may write their result over their first argument.

    `kinds` are of what kind all nodes' values are, `last_reader` is the last to read each, `wanted` outlive the pass.
    """
    memory: dict[int, set[int]] = {}  # by value, whose memory it may be in
    holders: dict[int, list[int]] = {}  # by owner of memory, the values that may be in it
    last: dict[int, float] = {}  # by owner, the last to read any of these
    whole: set[int] = set()  # values that are all of memory that this pass made
    in_place = set()
    for index in order:
        node = nodes[index]
        first = node.args[0] if node.args else None
        own = {index}
        if node.op in _IN_PLACE and isinstance(first, Ref) and first.node in whole:
            (owner,) = memory[first.node]
            others = references((*node.args[1:], *node.kwargs.values()))
            if last[owner] <= index and all(owner not in memory.get(value, ()) for value in others):
                in_place.add(index)
                own = {owner}
        if node.op in _NEW:
            whole.add(index)
        elif kinds[index] == SIZE_KIND:
            own = set()
        else:
            own = {owner for value in references(node) for owner in memory.get(value, {value})} or own
            if node.op in _VIEWS and isinstance(first, Ref) and first.node in whole:
                whole.add(index)
        if len(own) > _MOST_OWNERS:
            # Nobody writes over any of them: to know in each value's case which they are takes the square of the work.
            for owner in own:
                whole.difference_update(holders.pop(owner, ()))
            own = set()
        memory[index] = own
        for owner in own:
            holders.setdefault(owner, []).append(index)
            reader = math.inf if index in wanted else last_reader.get(index, -1)
            last[owner] = max(last.get(owner, -1), reader)
    return in_place


def over_first(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs for `op` where it may overwrite its first argument, which it does if the result fits there."""
    in_place = _IN_PLACE[op]

    def run(target: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (in_place if _fits(target, args) else function)(target, *args, **kwargs)

    return run


def _fits(target: Tensor, others: Sequence[Any]) -> bool:
    if not target.is_floating_point():
        return False
    shape = target.shape
    for other in others:
        if isinstance(other, Tensor):
            if other.dtype != target.dtype or other.dim() > len(shape):
                return False
            if any(size not in (1, own) for size, own in zip(reversed(other.shape), reversed(shape), strict=False)):
                return False
    return True
