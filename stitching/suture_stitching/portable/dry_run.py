"""What a portable model would cost, found out before anything is allocated.

The graph runs on torch's meta device, where tensors have shapes and no memory. A file that asks for more memory or
arithmetic than the budget, or whose sizes do not fit, is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.format import TensorInfo
from suture_contract.model.graph import Graph, Input, Node, references
from suture_contract.model.graph_json import leaves
from suture_stitching.portable.program import Program, Slots
from suture_stitching.portable.schemas import TORCH_DTYPES


@dataclass(frozen=True)
class Budget:
    """The most a model may ask for in one pass: floating-point operations, and bytes of weights and activations."""

    flops: int = 10**14
    bytes: int = 16 * 2**30


#: For sizes and costs alone: on the meta device nothing is allocated, so that nothing need be refused.
UNLIMITED = Budget(10**18, 2**60)


@dataclass(frozen=True)
class Cost:
    """What one pass takes: `flops` (2 per multiply-add) and `peak_bytes` of weights and values alive at once.

    `outputs` are the output's leaves, in order, with the sizes they have. `bound_bytes` is at least what a pass takes
    on a processor together with what operators allocate for themselves meanwhile, which depends on the kernel that
    torch picks: a convolution may unroll its input, attention may hold its whole matrix. No budget refuses by it,
    as most kernels need far less; whoever runs a stranger's file limits the process as well.
    """

    flops: int
    peak_bytes: int
    outputs: tuple[Input, ...]
    bound_bytes: int = 0


@dataclass(frozen=True)
class Measured:
    """A pass on the meta device: its cost, and per node what its tensor is (None for others) and its FLOPs."""

    cost: Cost
    tensors: tuple[Input | None, ...]
    flops: tuple[int, ...]


def dry_run(
    graph: Graph,
    tensors: Mapping[str, Tensor | TensorInfo],
    shapes: Sequence[Sequence[int]],
    budget: Budget | None = None,
) -> Cost:
    """Return what `graph` costs for inputs of these `shapes`; nothing is allocated.

    Raises `SutureError`: `model.over_budget`, `model.run_failed` naming the node, `model.outputs` when the outputs are
    not what the graph states.
    """
    return measure(Program(graph), tensors, shapes, budget).cost


def measure(
    program: Program,
    tensors: Mapping[str, Tensor | TensorInfo],
    shapes: Sequence[Sequence[int]],
    budget: Budget | None = None,
) -> Measured:
    """Return cost and sizes of a pass of `program`, as `dry_run` does."""
    graph, budget = program.graph, budget or Budget()
    inputs = _meta_inputs(graph.inputs, shapes)
    output_nodes = [ref.node for ref in leaves(graph.output)]
    plan = program.plan(frozenset(output_nodes))
    slots = program.slots(torch.device("meta"))
    memory = _Memory(budget.bytes)
    found: list[Input | None] = [None] * len(graph.nodes)
    node_flops = [0] * len(graph.nodes)
    for node, name in plan.tensors:
        slots[node] = torch.empty(tensors[name].shape, dtype=_dtype(tensors[name]), device="meta")
    for node, index in plan.inputs:
        slots[node] = inputs[index]
    for node in (*(node for node, _ in plan.tensors), *(node for node, _ in plan.inputs)):
        found[node] = _spec(slots[node])
        memory.hold(slots[node])
    total = 0
    for step in plan.steps:
        try:
            with torch.no_grad():
                value = step.run(slots)
        except Exception as error:  # as in `Program.run`
            raise program.failure(step.node, error) from error
        slots[step.node] = value
        if isinstance(value, Tensor):
            found[step.node] = _spec(value)
        node_flops[step.node] = _flops(graph.nodes[step.node], slots, value)
        total += node_flops[step.node]
        if total > budget.flops:
            _over_budget(f"more than {budget.flops:.3g} floating-point operations")
        memory.hold(value, _workspace(graph.nodes[step.node], slots, value))
        for slot in step.dead:
            memory.release(slots[slot])
            slots[slot] = None
    outputs = tuple(_spec(slots[node]) for node in output_nodes)
    _check_outputs(graph.outputs, outputs)
    return Measured(Cost(total, memory.peak, outputs, memory.bound), tuple(found), tuple(node_flops))


def with_outputs(graph: Graph, tensors: Mapping[str, Tensor | TensorInfo]) -> Graph:
    """Return `graph` with its `outputs` filled in from two dry runs of other batch (and, where free, other) sizes."""
    program = Program(Graph(graph.inputs, graph.nodes, graph.output))
    failure: SutureError | None = None
    for sizes in ((64, 96), (32, 48), (224, 256), (16, 24), (128, 160), (8, 12)):
        try:
            runs = [
                measure(program, tensors, [_filled(spec.shape, batch, size) for spec in graph.inputs], UNLIMITED)
                for batch, size in zip((2, 3), sizes, strict=True)
            ]
        except SutureError as error:
            failure = error
            continue
        outputs = tuple(
            Input(tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)), a.dtype)
            for a, b in zip(runs[0].cost.outputs, runs[1].cost.outputs, strict=True)
        )
        return Graph(graph.inputs, graph.nodes, graph.output, outputs)
    assert failure is not None
    raise failure


class _Memory:
    """Bytes of the storages that live values share; refuses more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._users: dict[int, int] = {}
        self._bytes = 0
        self.peak = 0
        self.bound = 0

    def hold(self, value: Any, workspace: int = 0) -> None:
        """Count the storages of a node's value, as long as nobody else holds them already."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            users = self._users[storage._cdata] = self._users.get(storage._cdata, 0) + 1
            if users == 1:
                self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        self.bound = max(self.bound, self._bytes + workspace)
        if self.peak > self._limit:
            _over_budget(f"more than {self._limit / 2**20:.0f} MiB of memory")

    def release(self, value: Any) -> None:
        """Stop counting a value; call it while the value is still alive."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            self._users[storage._cdata] -= 1
            if self._users[storage._cdata] == 0:
                del self._users[storage._cdata]
                self._bytes -= storage.nbytes()


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return value if isinstance(value, list | tuple) else ()


def _filled(shape: Sequence[int | None], batch: int, size: int) -> tuple[int, ...]:
    return tuple(known if known is not None else batch if axis == 0 else size for axis, known in enumerate(shape))


def _meta_inputs(specs: Sequence[Input], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    if len(specs) != len(shapes):
        raise SutureError("input.count", f"the model reads {len(specs)} tensor(s), {len(shapes)} shape(s) were given")
    try:
        return [
            torch.empty(tuple(shape), dtype=TORCH_DTYPES[spec.dtype], device="meta")
            for spec, shape in zip(specs, shapes, strict=True)
        ]
    except (RuntimeError, TypeError, ValueError) as error:
        raise SutureError("input.shape", f"{shapes} are not shapes of tensors") from error


def _dtype(tensor: Tensor | TensorInfo) -> torch.dtype:
    return tensor.dtype if isinstance(tensor, Tensor) else TORCH_DTYPES[tensor.dtype]


def _spec(value: Tensor) -> Input:
    return Input(tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _check_outputs(stated: Sequence[Input], actual: Sequence[Input]) -> None:
    for index, (want, have) in enumerate(zip(stated, actual, strict=False)):
        sizes_differ = len(want.shape) != len(have.shape) or any(
            size is not None and size != other for size, other in zip(want.shape, have.shape, strict=True)
        )
        if sizes_differ or want.dtype != have.dtype:
            raise SutureError(
                "model.outputs",
                f"output {index} is {have.dtype} {have.shape}, the graph states {want.dtype} {want.shape}",
                hint="the file is damaged or was not written by Suture; export it again",
            )


def _over_budget(problem: str) -> NoReturn:
    raise SutureError(
        "model.over_budget", f"one pass needs {problem}", hint="use a smaller batch or input, or allow it more"
    )


def _flops(node: Node, slots: Slots, result: Any) -> int:
    """Return the operations of one node; exact for products, the number of elements for the rest, 0 for views."""
    if not node.op.startswith("aten."):
        return 0
    results = _tensors(result)
    elements = sum(tensor.numel() for tensor in results)
    tensors = [slots[index] for index in references(node) if isinstance(slots[index], Tensor)]
    count = _PRODUCTS.get(node.op.split(".")[1])
    if count is not None:
        return int(count(node, tensors, elements))
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    if results and all(tensor.untyped_storage()._cdata in storages for tensor in results):
        return 0
    return int(max([elements, *(tensor.numel() for tensor in tensors)]))


def _workspace(node: Node, slots: Slots, result: Any) -> int:
    """Return a bound on the bytes that one operator allocates beside its result: copies of all it reads and returns.

    Kernels make their arguments contiguous, broadcast them, and compute halves as float32; indices become int64.
    """
    results = _tensors(result)
    tensors = [slots[index] for index in references(node) if isinstance(slots[index], Tensor)]
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    if results and all(tensor.untyped_storage()._cdata in storages for tensor in results):
        return 0
    width = max([4, *(tensor.element_size() for tensor in tensors)])
    copied = sum(tensor.numel() * max(width, tensor.element_size()) for tensor in (*tensors, *results))
    unrolled = _UNROLLED.get(node.op.split(".")[1]) if node.op.startswith("aten.") else None
    return int(copied + (int(unrolled(node, tensors, results)) * width if unrolled is not None else 0))


def _columns(node: Node, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """A convolution as a product: for each place of the output the part of the input that it reads (im2col)."""
    weight, output = tensors[1], results[0]
    places = output.numel() // max(output.shape[-weight.dim() + 1], 1)
    return places * tensors[0].shape[-weight.dim() + 1] * math.prod(weight.shape[2:])


def _transposed_columns(node: Node, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    weight, output = tensors[1], results[0]
    places = tensors[0].numel() // max(tensors[0].shape[-weight.dim() + 1], 1)
    return places * output.shape[-weight.dim() + 1] * math.prod(weight.shape[2:])


def _matrix(node: Node, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """Attention's weights before and after the softmax, and its mask."""
    query, key = tensors[:2]
    return 3 * (query.numel() // max(query.shape[-1], 1)) * key.shape[-2]


def _gates(node: Node, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """All steps' gates in both directions, and each layer's output."""
    steps = tensors[0].shape[0] * tensors[0].shape[1]
    widths = [weight.shape[0] for weight in tensors if weight.dim() == 2]
    return int(2 * steps * sum(widths))


_UNROLLED: dict[str, Callable[[Node, Sequence[Tensor], Sequence[Tensor]], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _columns),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_columns),
    "scaled_dot_product_attention": _matrix,
    "lstm": _gates,
    "gru": _gates,
}


def _einsum(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    """Each output element sums over the letters that the output does not have."""
    equation = str(node.args[0]).replace(" ", "")
    terms, _, output = equation.partition("->")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms.split(","), tensors, strict=False):
        before, dots, after = term.partition("...")
        sizes |= dict(zip(before, tensor.shape, strict=False))
        if dots and after:
            sizes |= dict(zip(after, tensor.shape[-len(after) :], strict=False))
    return 2 * elements * math.prod(size for letter, size in sizes.items() if letter not in output)


def _recurrent(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    steps = int(tensors[0].shape[0] * tensors[0].shape[1])
    return int(2 * steps * sum(weight.numel() for weight in tensors if weight.dim() == 2))


def _attention(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    query, key, value = tensors[:3]
    rows = query.numel() // max(query.shape[-1], 1)
    return int(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _convolution(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    return 2 * elements * (tensors[1].numel() // max(tensors[1].shape[0], 1))


def _transposed(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    return 2 * tensors[0].numel() * (tensors[1].numel() // max(tensors[1].shape[0], 1))


def _product(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    return 2 * elements * int(tensors[0].shape[-1])


_PRODUCTS: dict[str, Callable[[Node, Sequence[Tensor], int], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm"), _product),
    "addmm": lambda node, tensors, elements: _product(node, tensors[1:], elements),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "lstm": _recurrent,
    "gru": _recurrent,
}
