"""A graph made ready to run: a small interpreter over slots.

A pass is planned once per question ("the output", "these features", "from these values on") as a list of steps. Each
step reads its arguments from one list of slots (a slot per node, then the device, then the constants) and knows which
values nobody reads after it. So a value lives no longer than in ordinary eager code, and a step costs less than a
module call.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from suture_contract.errors import SutureError
from suture_contract.model.graph import INPUT, TENSOR, DType, Graph, Node, Ref, SameDevice, Value, references
from suture_stitching.portable.in_place import over_first, overwriting
from suture_stitching.portable.schemas import MEMORY_FORMATS, TORCH_DTYPES, check_arguments, checked, declared_type

Slots: TypeAlias = list[Any]
Run: TypeAlias = Callable[[Slots], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Run one node; its value goes to slot `node`, and nobody reads the slots `dead` again.

    `run_over` does the same, but may put the value where that of a dead slot was.
    """

    node: int
    run: Run
    run_over: Run
    dead: tuple[int, ...]

    def __call__(self, slots: Slots) -> Any:
        """Return the node's value."""
        # Gradients are computed from the values that were, and a recording is of a graph without changes in place.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.run(slots)
        return self.run_over(slots)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What one question needs: tensors and inputs to put into their slots (node, name or index), then the steps."""

    tensors: tuple[tuple[int, str], ...]
    inputs: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]


class Program:
    """The checked graph with one runnable per node; raises `SutureError` (`model.arguments`) for a bad graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kinds = check_arguments(graph)
        self._device = len(graph.nodes)
        self._constants: Slots = [None]
        self._runs = [None if node.op in (INPUT, TENSOR) else self._compile(node) for node in graph.nodes]
        self._plans: dict[tuple[frozenset[int], frozenset[int]], RunPlan] = {}
        self._releases: dict[frozenset[int], dict[int, list[int]]] = {}

    def plan(self, targets: frozenset[int], known: frozenset[int] = frozenset()) -> RunPlan:
        """Return what must run for the values of the nodes `targets` when those of `known` are given."""
        plan = self._plans.get((targets, known))
        if plan is None:
            plan = self._plans[targets, known] = self._new_plan(targets, known)
        return plan

    def slots(self, device: Any) -> Slots:
        """Return empty slots for a pass on `device`."""
        slots: Slots = [None] * len(self.graph.nodes)
        slots += self._constants
        slots[self._device] = device
        return slots

    def run(self, plan: RunPlan, slots: Slots) -> None:
        """Run the steps; raises `SutureError` (`model.run_failed`) naming the node whose operator refused."""
        node = 0
        try:
            for step in plan.steps:
                node = step.node
                slots[node] = step(slots)
                for slot in step.dead:
                    slots[slot] = None
        except Exception as error:  # operators raise all kinds for shapes and types that do not fit
            if is_out_of_memory(error):
                raise
            raise self.failure(node, error) from error

    def stream(self, plan: RunPlan, slots: Slots, targets: frozenset[int]) -> Iterator[tuple[int, Any]]:
        """Run the steps, but yield each node of `targets` once it has its value, held no longer than needed."""
        node = 0
        released = self._released(plan, targets)
        for target in targets:
            if self._runs[target] is None:
                yield target, slots[target]
        for step in plan.steps:
            node = step.node
            try:
                slots[node] = step(slots)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self.failure(node, error) from error
            if node in targets:
                yield node, slots[node]
            for slot in (*step.dead, *released.get(node, ())):
                slots[slot] = None

    def _released(self, plan: RunPlan, targets: frozenset[int]) -> dict[int, list[int]]:
        """Return by step which of `targets` nobody reads after it."""
        releases = self._releases.get(targets)
        if releases is None:
            last = {step.node: step.node for step in plan.steps if step.node in targets}
            for step in plan.steps:
                last |= {source: step.node for source in references(self.graph.nodes[step.node]) if source in targets}
            releases = self._releases[targets] = {}
            for target, reader in last.items():
                releases.setdefault(reader, []).append(target)
        return releases

    def failure(self, node: int, error: Exception) -> SutureError:
        """Return the error to raise when the operator of `node` refused its arguments."""
        failed = self.graph.nodes[node]
        module = f", module {failed.module}" if failed.module else ""
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        return SutureError(
            "model.run_failed",
            first_line[:400],
            where=f"n{node} {failed.op}{module}",
            hint="check that the input has the size the model was made for",
        )

    def _new_plan(self, targets: frozenset[int], known: frozenset[int]) -> RunPlan:
        nodes = self.graph.nodes
        needed = set(targets)
        for index in range(len(nodes) - 1, -1, -1):
            if index in needed and index not in known:
                needed.update(references(nodes[index]))
        order = [index for index in sorted(needed) if index not in known]
        last_reader: dict[int, int] = {}
        for index in order:
            for source in references(nodes[index]):
                last_reader[source] = index
        dead: dict[int, list[int]] = {}
        for source, reader in last_reader.items():
            if source not in targets:
                dead.setdefault(reader, []).append(source)
        tensors, inputs, steps = [], [], []
        over = overwriting(nodes, self.kinds, order, last_reader, targets)
        for index in order:
            node, run = nodes[index], self._runs[index]
            if run is not None:
                run_over = self._compile(node, over=True) if index in over else run
                steps.append(Step(index, run, run_over, tuple(dead.get(index, ()))))
            elif node.op == TENSOR:
                tensors.append((index, str(node.args[0])))
            else:
                inputs.append((index, int(node.args[0])))  # type: ignore[arg-type]  # by the format's check
        return RunPlan(tuple(tensors), tuple(inputs), tuple(steps))

    def _compile(self, node: Node, *, over: bool = False) -> Run:
        """Return a function of the slots that runs `node`, writing over its first argument if it may do so."""
        function = over_first(node.op, checked(node)) if over else checked(node)
        read = self._reader(tuple(_prepared(node, i, arg) for i, arg in enumerate(node.args)))
        if not node.kwargs:
            return lambda slots: function(*read(slots))
        kwargs = {name: _prepared(node, name, arg) for name, arg in node.kwargs.items()}
        if all(_is_constant(value) for value in kwargs.values()):
            function = functools.partial(function, **{name: _constant(value) for name, value in kwargs.items()})
            return lambda slots: function(*read(slots))
        names, read_kwargs = tuple(kwargs), self._reader(tuple(kwargs.values()))
        return lambda slots: function(*read(slots), **dict(zip(names, read_kwargs(slots), strict=True)))

    def _reader(self, values: tuple[Any, ...]) -> Callable[[Slots], tuple[Any, ...]]:
        """Return a function that reads all of `values` from the slots, constants included."""
        if any(isinstance(value, tuple) and not _is_constant(value) for value in values):
            readers = [self._nested_reader(value) for value in values]
            return lambda slots: tuple([read(slots) for read in readers])
        places = [self._slot(value) for value in values]
        if not places:
            return lambda _slots: ()
        if len(places) == 1:
            (only,) = places
            return lambda slots: (slots[only],)
        return operator.itemgetter(*places)

    def _nested_reader(self, value: Any) -> Run:
        if isinstance(value, tuple) and not _is_constant(value):
            readers = [self._nested_reader(item) for item in value]
            return lambda slots: [read(slots) for read in readers]
        return operator.itemgetter(self._slot(value))

    def _slot(self, value: Any) -> int:
        if isinstance(value, Ref):
            return value.node
        if isinstance(value, SameDevice):
            return self._device
        self._constants.append(_constant(value))
        return self._device + len(self._constants) - 1


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(item) for item in value)
    return not isinstance(value, Ref | SameDevice)


def _constant(value: Any) -> Any:
    if isinstance(value, DType):
        return TORCH_DTYPES[value.name]
    if isinstance(value, tuple):
        return [_constant(item) for item in value]
    return value


def _prepared(node: Node, key: int | str, value: Value) -> Any:
    """Return a memory format for its name, every other argument as it is; `key` is its position or name."""
    if isinstance(value, str) and declared_type(node.op, key) == "MemoryFormat":
        return MEMORY_FORMATS[value]
    return value


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory has run out: on a device, or where torch's or oneDNN's own allocator says so."""
    words = ("not enough memory", "can't allocate memory", "bad_alloc")
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or any(part in str(error) for part in words)


def nest(output: Any, slots: Mapping[int, Any] | Slots) -> Any:
    """Return the values of a nested output, nested the same way."""
    if isinstance(output, Ref):
        return slots[output.node]
    if isinstance(output, dict):
        return {name: nest(item, slots) for name, item in output.items()}
    return tuple(nest(item, slots) for item in output)
