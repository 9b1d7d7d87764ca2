"""What a portable model would cost, found out before anything is allocated.

The graph runs on torch's meta device, where tensors have shapes and no memory. A file that asks for more memory or
arithmetic than the budget, or whose sizes do not fit, is refused here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.format import TensorInfo
from suture_contract.model.graph import Graph, Input, Node, Ref, references
from suture_contract.model.graph_json import leaves
from suture_stitching.portable.program import Program, Slots
from suture_stitching.portable.schemas import TORCH_DTYPES, bind
from suture_stitching.portable.shape_kernels import without_compiler


@dataclass(frozen=True)
class Budget:
    """The most a model may ask for in one pass: floating-point operations, and bytes of weights and activations.

    To the bytes come `input_times` those of the inputs: large inputs make large activations. `until` is the moment, of
    `time.monotonic`, at which finding this out ends.
    """

    flops: int = 10**14
    bytes: int = 16 * 2**30
    until: float = math.inf
    input_times: int = 0


#: What a tensor takes beside its numbers, also a view, which has none of its own: torch's two objects and Python's.
OBJECT_BYTES = 1024
#: On the meta device, too, these are there.
MAX_ALIVE = 200_000
#: What torch's libraries keep from their first use on.
_ONCE_BYTES = 6 * 2**20
#: What making each of several results costs, in the time of so many operations.
_EACH_RESULT = 1000
#: For sizes and costs alone: on the meta device no numbers are allocated, so that none need be refused.
UNLIMITED = Budget(10**18, 2**60)


@dataclass(frozen=True)
class Cost:
    """What one pass takes: `flops` (2 per multiply-add) and `peak_bytes` of weights and values alive at once.

    `moved_bytes` are those that operators read and write, a value as often as it is read: what takes the time where
    there is little to compute. `steps` are the operators that run, each step of a recurrent layer being one.

    `outputs` are the output's leaves, in order, with the sizes they have. `bound_bytes` is at least what a pass takes
    on a processor together with what operators allocate for themselves meanwhile, which depends on the kernel that
    torch picks: a convolution may unroll its input, attention may hold its whole matrix. No budget refuses by it,
    as most kernels need far less; whoever runs a stranger's file limits the process as well.
    """

    flops: int
    peak_bytes: int
    outputs: tuple[Input, ...]
    bound_bytes: int = 0
    moved_bytes: int = 0
    steps: int = 0

    @property
    def expected_bytes(self) -> int:
        """By how much a process grows that runs it on a processor; within a factor of three of what was measured.

        Beside the values there are copies of weights in the order that kernels want, and what is allocated once.
        """
        return self.peak_bytes + self.peak_bytes // 2 + _ONCE_BYTES

    def seconds(self, flops: float, bandwidth: float, overhead: float) -> float:
        """Return how long a pass takes: at so many `flops` and bytes of `bandwidth` a second, each step `overhead`."""
        return self.flops / flops + self.moved_bytes / bandwidth + self.steps * overhead


@dataclass(frozen=True)
class Measured:
    """A pass on the meta device: its cost, and per node what its tensor is (None for others) and its FLOPs."""

    cost: Cost
    tensors: tuple[Input | None, ...]
    flops: tuple[int, ...]


def stranger(file_bytes: int, memory_gib: float | None = None) -> Budget:
    """Return what a stranger's model may ask for where nobody says more: several times what networks of its size take.

    With `memory_gib` it may have so much memory in one pass, whatever its size.
    """
    if memory_gib is not None:
        return Budget(bytes=int(memory_gib * 2**30))
    return Budget(bytes=256 * 2**20 + 4 * file_bytes, input_times=1024)


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
    without_compiler()
    graph, budget = program.graph, budget or Budget()
    inputs = _meta_inputs(graph.inputs, shapes)
    output_nodes = [ref.node for ref in leaves(graph.output)]
    plan = program.plan(frozenset(output_nodes))
    slots = program.slots(torch.device("meta"))
    input_bytes = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    memory = _Memory(budget.bytes + budget.input_times * input_bytes)
    specs: list[Input | None] = [None] * len(graph.nodes)
    node_flops = [0] * len(graph.nodes)
    for node, name in plan.tensors:
        slots[node] = torch.empty(tensors[name].shape, dtype=_dtype(tensors[name]), device="meta")
    for node, index in plan.inputs:
        slots[node] = inputs[index]
    for node in (*(node for node, _ in plan.tensors), *(node for node, _ in plan.inputs)):
        specs[node] = _spec(slots[node])
        memory.hold(slots[node])
    total, moved, steps = 0, 0, len(plan.steps)
    for step in plan.steps:
        if time.monotonic() > budget.until:
            _over_budget("more time to look at than there is")
        try:
            with torch.no_grad():
                value = step.run(slots)
        except Exception as error:  # as in `Program.run`
            raise program.failure(step.node, error) from error
        slots[step.node] = value
        if isinstance(value, Tensor):
            specs[step.node] = _spec(value)
        read = _read_by(graph.nodes[step.node], slots)
        node_flops[step.node] = _flops(graph.nodes[step.node], slots, read, value)
        total += node_flops[step.node]
        steps += _repetitions(graph.nodes[step.node], read)
        if not _is_view(read, value):
            moved += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *_tensors(value)))
        if total > budget.flops:
            _over_budget(f"more than {budget.flops:.3g} floating-point operations")
        memory.hold(value, _workspace(graph.nodes[step.node], read, value))
        for slot in step.dead:
            memory.release(slots[slot])
            slots[slot] = None
    outputs = tuple(_spec(slots[node]) for node in output_nodes)
    _check_outputs(graph.outputs, outputs)
    cost = Cost(total, memory.peak, outputs, memory.bound, moved, steps)
    return Measured(cost, tuple(specs), tuple(node_flops))


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
    """Bytes of the storages that live values share, and of the tensors themselves; refuses more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._users: dict[int, int] = {}
        self._bytes = 0
        self._alive = 0
        self.peak = 0
        self.bound = 0

    def hold(self, value: Any, workspace: int = 0) -> None:
        """Count the storages of a node's value, as long as nobody else holds them already."""
        tensors = _tensors(value)
        self._alive += len(tensors)
        self._bytes += len(tensors) * OBJECT_BYTES
        for tensor in tensors:
            storage = tensor.untyped_storage()
            users = self._users[storage._cdata] = self._users.get(storage._cdata, 0) + 1
            if users == 1:
                self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        self.bound = max(self.bound, self._bytes + workspace)
        if self._alive > MAX_ALIVE:
            _over_budget(f"more than {MAX_ALIVE} tensors at once")
        if self.peak > self._limit:
            _over_budget(f"more than {self._limit / 2**20:.0f} MiB of memory")

    def release(self, value: Any) -> None:
        """Stop counting a value; call it while the value is still alive."""
        tensors = _tensors(value)
        self._alive -= len(tensors)
        self._bytes -= len(tensors) * OBJECT_BYTES
        for tensor in tensors:
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
        "model.over_budget",
        f"one pass needs {problem}",
        hint="use a smaller batch or input; or, if you trust the file, allow it more memory",
    )


def _read_by(node: Node, slots: Slots) -> list[Tensor]:
    """Return the tensors that a node reads."""
    return [slots[index] for index in references(node) if isinstance(slots[index], Tensor)]


def _is_view(tensors: Sequence[Tensor], result: Any) -> bool:
    """Whether all that came out lies in the memory of what went in; so does a size, which is not in memory at all."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    return all(tensor.untyped_storage()._cdata in storages for tensor in _tensors(result))


def _flops(node: Node, slots: Slots, tensors: Sequence[Tensor], result: Any) -> int:
    """Return the operations of one node; exact for products, windows counted, the number of elements for the rest.

    A view is free; of several results each costs something, since there may be thousands without a number in them.
    """
    if not node.op.startswith("aten."):
        return 0
    results = _tensors(result)
    elements = sum(tensor.numel() for tensor in results)
    each = _EACH_RESULT * len(results) if len(results) > 1 else 0
    name = node.op.split(".")[1]
    count = _PRODUCTS.get(name)
    if count is not None:
        return int(count(node, tensors, elements))
    if name in _WINDOWS:
        return max(elements * _WINDOWS[name](node, slots, tensors[0], results[0]), tensors[0].numel())
    if results and _is_view(tensors, result):
        return each
    return int(max([elements, *(tensor.numel() for tensor in tensors)])) + each


def _workspace(node: Node, tensors: Sequence[Tensor], result: Any) -> int:
    """Return a bound on the bytes that one operator allocates beside its result: copies of all it reads and returns.

    Kernels make their arguments contiguous, broadcast them, and compute halves as float32; indices become int64.
    """
    results = _tensors(result)
    if results and _is_view(tensors, result):
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
    "rnn_tanh": _gates,
    "rnn_relu": _gates,
}


def _einsum(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    """A multiply-add for each choice of all indices, whether the output has them or they are summed over.

    What `...` stands for counts by its place from the right.
    """
    sizes: dict[str | int, int] = {}
    for term, tensor in zip(str(node.args[0]).replace(" ", "").partition("->")[0].split(","), tensors, strict=False):
        before, dots, after = term.partition("...")
        hidden = tensor.dim() - len(before) - len(after) if dots else 0
        for index, size in zip([*before, *range(-hidden, 0), *after], tensor.shape, strict=False):
            sizes[index] = max(size, sizes.get(index, 0))
    return 2 * math.prod(sizes.values())


def _recurrent(node: Node, tensors: Sequence[Tensor], elements: int) -> int:
    steps = int(tensors[0].shape[0] * tensors[0].shape[1])
    return int(2 * steps * sum(weight.numel() for weight in tensors if weight.dim() == 2))


def _repetitions(node: Node, tensors: Sequence[Tensor]) -> int:
    """Return how often a recurrent layer does its work beyond the first time: per step, layer and direction."""
    if not node.op.startswith("aten.") or _PRODUCTS.get(node.op.split(".")[1]) is not _recurrent:
        return 0
    length = tensors[0].shape[1 if node.args[-1] is True else 0]
    return int(length * max(sum(tensor.dim() == 2 for tensor in tensors) // 2, 1)) - 1


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


def _kernel(node: Node, slots: Slots, source: Tensor, result: Tensor) -> int:
    """A pooling with a window of a given size reads all of it for each element that comes out."""
    window = bind(node)["kernel_size"]
    parts = window if isinstance(window, tuple) else (window,)
    sizes = [int(slots[part.node] if isinstance(part, Ref) else part) for part in parts]  # type: ignore[arg-type]
    return int(math.prod(sizes) ** (_axes(node) if len(sizes) == 1 else 1))


def _adaptive(node: Node, slots: Slots, source: Tensor, result: Tensor) -> int:
    """One with a result of a given size reads the share of the input, and one more where that is no whole number."""
    pairs = zip(source.shape[-_axes(node) :], result.shape[-_axes(node) :], strict=True)
    return math.prod(before // after + 2 * (before % after > 0) for before, after in pairs if after)


def _axes(node: Node) -> int:
    """Return over how many axes a pooling goes, by its name: 2 for `max_pool2d`."""
    return int(node.op.split(".")[1][-2])


_WINDOWS: dict[str, Callable[[Node, Slots, Tensor, Tensor], int]] = {
    **dict.fromkeys((f"{kind}_pool{axes}d" for kind in ("max", "avg") for axes in (1, 2, 3)), _kernel),
    **dict.fromkeys((f"adaptive_{kind}_pool{axes}d" for kind in ("max", "avg") for axes in (1, 2, 3)), _adaptive),
}
_PRODUCTS: dict[str, Callable[[Node, Sequence[Tensor], int], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm"), _product),
    "addmm": lambda node, tensors, elements: _product(node, tensors[1:], elements),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
    "cdist": lambda node, tensors, elements: 3 * _product(node, tensors, elements),
}
