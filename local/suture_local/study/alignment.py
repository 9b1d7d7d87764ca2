"""Networks of one design with their units in one order, so that averages of their weights mean something.

Units of a hidden layer may stand in any order without changing what a network computes. Two that were trained apart
have theirs in different orders, and an average of their weights is then neither. `aligned` puts those of one network
in the order that makes its weights most like another's (Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2023).
`with_statistics` then measures the statistics of batch normalisation anew, since those of averaged weights are others
(Jordan et al., "REPAIR", 2023).
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

#: Rounds over all layers at most; a round in which no order changes is the last one.
ROUNDS = 20
#: What leaves units as they are, each by itself.
_EACH_ALONE = (
    *(nn.ReLU, nn.GELU, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
_FUNCTIONS: tuple[Any, ...] = (F.relu, F.gelu, F.interpolate, F.dropout, torch.relu, torch.flatten)
_METHODS = ("mean", "flatten", "relu")
#: The sets of units, each in an order of its own, that a value's channels are one after another.
_Channels = tuple[int, ...]


class NotAligned(Exception):
    """A network is built of what this module does not know."""


@dataclass
class _Layers:
    """Which axes of which parameters follow the order of which sets of units."""

    sizes: list[int] = field(default_factory=list)
    #: Sets that are one and the same, by what was added up; and those whose order is given from outside.
    same: dict[int, int] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    axes: list[tuple[str, int, _Channels]] = field(default_factory=list)

    def new(self, size: int) -> _Channels:
        self.sizes.append(size)
        return (len(self.sizes) - 1,)

    def first(self, units: int) -> int:
        """Return the set that stands for all that are the same."""
        while units in self.same:
            units = self.same[units]
        return units

    def order(self, channels: _Channels, orders: Sequence[NDArray[np.int64]], length: int) -> NDArray[np.int64]:
        """Return the order of an axis of this `length`: after a flattening each unit has several places."""
        offsets = np.cumsum([0, *(self.sizes[units] for units in channels)])
        whole = np.concatenate(
            [orders[self.first(units)] + offset for units, offset in zip(channels, offsets, strict=False)]
        )
        each = length // len(whole)
        return (whole[:, None] * each + np.arange(each)).reshape(-1)


def aligned(module: nn.Module, like: nn.Module) -> nn.Module:
    """Return a copy of `module`, which computes the same, with its units in the order that is most like `like`'s.

    Raises `NotAligned` for a network whose layers are of other kinds than this module knows.
    """
    layers = _layers(module)
    orders = [np.arange(size) for size in layers.sizes]
    ours: dict[str, Tensor] = {name: value.detach().double().cpu() for name, value in module.state_dict().items()}
    theirs = {name: value.detach().double().cpu() for name, value in like.named_parameters()}
    by_name: dict[str, list[tuple[int, _Channels]]] = {}
    for name, axis, channels in layers.axes:
        by_name.setdefault(name, []).append((axis, channels))

    def ordered(name: str, but: int | None = None) -> Tensor:
        value = ours[name]
        for axis, channels in by_name.get(name, ()):
            if axis != but:
                order = layers.order(channels, orders, value.shape[axis])
                value = torch.index_select(value, axis, torch.from_numpy(order))
        return value

    free = [units for units in range(len(orders)) if units not in layers.same and units not in layers.fixed]
    for _ in range(ROUNDS):
        changed = False
        for units in free:
            alike = np.zeros((layers.sizes[units],) * 2)
            for name, axis, channels in layers.axes:
                if name in theirs and units in map(layers.first, channels):
                    alike += _alike(layers, units, channels, theirs[name], ordered(name, axis), axis)
            order = assignment(alike)
            gain = alike[np.arange(len(order)), order].sum() - alike[np.arange(len(order)), orders[units]].sum()
            if gain > 1e-9 * max(1.0, float(np.abs(alike).max())):
                orders[units], changed = order, True
        if not changed:
            break
    result = copy.deepcopy(module)
    state = result.state_dict()
    result.load_state_dict({name: ordered(name).to(value.dtype) for name, value in state.items()})
    return result


def _alike(
    layers: _Layers, units: int, channels: _Channels, theirs: Tensor, ours: Tensor, axis: int
) -> NDArray[np.float64]:
    """Return products `(theirs, ours)` of each pair of units, summed over this axis's places of theirs."""
    total = np.zeros((layers.sizes[units],) * 2)
    each = theirs.shape[axis] // sum(layers.sizes[own] for own in channels)
    start = 0
    for own in channels:
        size = layers.sizes[own]
        if layers.first(own) == units:
            a, b = (value.narrow(axis, start * each, size * each).movedim(axis, 0) for value in (theirs, ours))
            total += (a.reshape(size, -1) @ b.reshape(size, -1).T).numpy()
        start += size
    return total


def _layers(module: nn.Module) -> _Layers:
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # whatever a network's own code raises when it is traced
        raise NotAligned(f"the network cannot be traced: {error}") from error
    layers, values, modules = _Layers(), dict[fx.Node, _Channels | None](), dict(module.named_modules())
    _check_used_once(module, graph)
    for node in graph.nodes:
        sources = [values[source] for source in node.all_input_nodes]
        if node.op == "placeholder":
            values[node] = None  # as many as the first layer reads, in the order of the data
        elif node.op == "output":
            layers.fixed |= {layers.first(units) for channels in sources if channels for units in channels}
        elif node.op == "call_module":
            values[node] = _through(layers, str(node.target), modules[str(node.target)], sources[0])
        elif node.target in (operator.add, torch.add) and len(sources) == 2:
            values[node] = _added(layers, *sources)
        elif node.target is torch.cat and None not in sources and _axis(node) == 1:
            values[node] = tuple(units for source in node.args[0] for units in values[source] or ())
        elif (node.op == "call_function" and node.target in _FUNCTIONS) or (
            node.op == "call_method" and node.target in _METHODS
        ):
            values[node] = sources[0]
        else:
            raise NotAligned(f"{node.op} {node.target} is not known")
    return layers


def _check_used_once(module: nn.Module, graph: fx.Graph) -> None:
    """Raise `NotAligned` where weights are used at two places: their units would need one order for both."""
    times = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    twice = next((name for name, n in times.items() if n > 1 and [*module.get_submodule(name).parameters()]), None)
    every = list(module.named_parameters(remove_duplicate=False))
    if twice is None and len({id(weight) for _, weight in every}) == len(every):
        return
    raise NotAligned(f"{twice or 'weights of one layer'} used at two places")


def _axis(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _added(layers: _Layers, left: _Channels | None, right: _Channels | None) -> _Channels:
    if left is None or right is None or [layers.sizes[a] for a in left] != [layers.sizes[b] for b in right]:
        raise NotAligned("a sum of values whose channels do not go together")
    for a, b in zip(left, right, strict=True):
        first, second = layers.first(a), layers.first(b)
        if first != second:
            layers.same[second] = first
    return left


def _through(layers: _Layers, name: str, module: nn.Module, channels: _Channels | None) -> _Channels | None:
    """Note what a layer's parameters follow; return the channels of what it gives."""
    if isinstance(module, _EACH_ALONE):
        return channels
    if isinstance(module, _NORMS):
        if channels is not None:
            held = dict(module.named_parameters()) | dict(module.named_buffers())
            layers.axes += [(f"{name}.{key}", 0, channels) for key, value in held.items() if value.dim()]
        return channels
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and getattr(module, "groups", 1) == 1:
        out, into = (1, 0) if isinstance(module, nn.ConvTranspose2d) else (0, 1)
        made = layers.new(int(module.weight.shape[out]))
        if channels is not None:
            layers.axes.append((f"{name}.weight", into, channels))
        layers.axes.append((f"{name}.weight", out, made))
        if module.bias is not None:
            layers.axes.append((f"{name}.bias", 0, made))
        return made
    raise NotAligned(f"{type(module).__name__} is not known")


def assignment(worth: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row of `worth` `(n, n)` a column of its own, so that their sum is the largest.

    The Hungarian method: rows come one after another, each by the shortest path of exchanges.
    """
    n = len(worth)
    cost = np.zeros((n + 1, n + 1))
    cost[1:, 1:] = -worth
    by_row, by_column = np.zeros(n + 1), np.zeros(n + 1)
    of = np.zeros(n + 1, dtype=np.int64)  # the row that has a column; 0 is none
    for row in range(1, n + 1):
        of[0], column = row, 0
        least, before, seen = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=bool)
        while of[column]:
            seen[column] = True
            reduced = cost[of[column]] - by_row[of[column]] - by_column
            closer = ~seen & (reduced < least)
            least[closer], before[closer] = reduced[closer], column
            nearest = int(np.where(seen, np.inf, least).argmin())
            step = least[nearest]
            by_row[of[seen]] += step
            by_column[seen] -= step
            least[~seen] -= step
            column = nearest
        while column:
            of[column], column = of[before[column]], int(before[column])
    result = np.empty(n, dtype=np.int64)
    result[of[1:] - 1] = np.arange(n)
    return result


def with_statistics(
    module: nn.Module, run: Callable[[nn.Module], object], progress: Callable[[float], None] = lambda done: None
) -> nn.Module:
    """Return a copy whose batch normalisation has the statistics of what `run` puts through it, layer by layer.

    `run` is called once for each layer; `progress` is told the part of them that is done.
    """
    result = copy.deepcopy(module).eval()
    norms = [own for own in result.modules() if isinstance(own, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for done, norm in enumerate(norms, 1):
        sums: list[Tensor] = []

        def add(_: nn.Module, inputs: tuple[Tensor, ...], sums: list[Tensor] = sums) -> None:
            x = inputs[0].double().transpose(0, 1).flatten(1)
            sums.append(torch.stack([x.sum(1), x.square().sum(1), torch.full_like(x[:, 0], x.shape[1])]))

        handle = norm.register_forward_pre_hook(add)
        run(result)
        handle.remove()
        total, squares, count = torch.stack(sums).sum(0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(total / count)
        norm.running_var.copy_((squares / count - (total / count).square()).clamp(min=0))
        progress(done / len(norms))
    return result
