"""The operator graph of a portable model, as plain immutable values (torch-free).

A graph is a list of nodes in an order in which references only point backwards. Its JSON form, limits and checks are
in `format`; this module is what everything else works with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

INPUT = "input"  # args: (index of the input,)
TENSOR = "tensor"  # args: (name of the tensor in the safetensors file,)


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an earlier node."""

    node: int


@dataclass(frozen=True, slots=True)
class DType:
    """A tensor element type by its torch name, such as `float32`."""

    name: str


@dataclass(frozen=True, slots=True)
class SameDevice:
    """A device argument: wherever the input is."""


#: What an operator's argument may be. Floats may be infinite; lists nest.
Value: TypeAlias = "bool | int | float | str | Ref | DType | SameDevice | tuple[Value, ...] | None"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `op` is `input`, `tensor`, `getitem`, `sym.<name>` or an exact `aten.<name>.<overload>`.

    `module` is the path of the module it came from, for people and for block boundaries; never executed or imported.
    """

    op: str
    args: tuple[Value, ...] = ()
    kwargs: dict[str, Value] = field(default_factory=dict)
    module: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor the graph accepts or returns: shape with None where a size is free (the batch is), element type."""

    shape: tuple[int | None, ...]
    dtype: str


#: Nested outputs: a reference, a list/tuple of outputs, or a dictionary of outputs.
Output: TypeAlias = "Ref | tuple[Output, ...] | dict[str, Output]"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in executable order. Node `i` is called `n<i>` wherever a name is needed.

    `outputs` states what each leaf of `output` is, in order of appearance, so that sizes can be compared without
    running anything; writing a graph fills it in, and every dry run checks it.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    output: Output
    outputs: tuple[Input, ...] = ()

    @property
    def operators(self) -> frozenset[str]:
        """The operators of PyTorch that it computes with, such as `aten.linear.default`."""
        return frozenset(node.op for node in self.nodes if node.op.startswith("aten."))


def references(value: object) -> Iterator[int]:
    """Yield the node indices that an argument, or a nested output, refers to, in order of appearance."""
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, Node):
        yield from references(value.args)
        yield from references(value.kwargs)
    elif isinstance(value, tuple):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)


def substitute(value: Value, replace: Callable[[Ref], Value]) -> Value:
    """Return `value` with every reference replaced by `replace(ref)`."""
    if isinstance(value, Ref):
        return replace(value)
    if isinstance(value, tuple):
        return tuple(substitute(item, replace) for item in value)
    return value


def prune(graph: Graph) -> Graph:
    """Return `graph` without the nodes its output does not need; the others keep their order and are renumbered."""
    needed = set(references(graph.output))
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in needed:
            needed.update(references(graph.nodes[index]))
    new_index = {old: new for new, old in enumerate(sorted(needed))}

    def renumber(ref: Ref) -> Value:
        return Ref(new_index[ref.node])

    nodes = tuple(
        Node(
            node.op,
            tuple(substitute(arg, renumber) for arg in node.args),
            {name: substitute(arg, renumber) for name, arg in node.kwargs.items()},
            node.module,
        )
        for node in (graph.nodes[index] for index in new_index)
    )
    return Graph(graph.inputs, nodes, _renumber_output(graph.output, new_index), graph.outputs)


def _renumber_output(output: Output, new_index: dict[int, int]) -> Output:
    if isinstance(output, Ref):
        return Ref(new_index[output.node])
    if isinstance(output, dict):
        return {name: _renumber_output(item, new_index) for name, item in output.items()}
    return tuple(_renumber_output(item, new_index) for item in output)
