"""Where a network can be read and stitched: the stitch points of a portable model.

A stitch point is the last tensor of a layer together with what merely follows it (normalisation, activation, views):
after conv-batchnorm-relu, not between. Found on the meta device, at two batch sizes, so that tensors whose first
dimension is not the batch are told apart. Edges that only carry sizes are ignored throughout.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from weakref import WeakKeyDictionary

from suture_contract.errors import SutureError
from suture_contract.model.graph import INPUT, Graph, Input, Node, Ref, references
from suture_contract.model.graph_json import leaves
from suture_stitching.portable.dry_run import UNLIMITED, Budget, measure
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.portable.schemas import SIZE_KIND, TENSOR_KIND


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_CHANNELS_SECOND = _names(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm instance_norm group_norm
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d grid_sampler col2im pad prelu"""
)
_RECURRENT = _names("lstm gru rnn_tanh rnn_relu")
_CHANNELS_LAST = _names("linear layer_norm rms_norm embedding") | _RECURRENT
_LAYERS = _RECURRENT | _names(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mm bmm addmm einsum
    scaled_dot_product_attention embedding"""
)
_NORMS = _names("batch_norm instance_norm group_norm layer_norm rms_norm")
_ELEMENTWISE = _names(
    """relu leaky_relu prelu elu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid softplus relu6 selu celu mish
    softmax log_softmax add sub mul div pow sqrt rsqrt exp log abs clamp rsub masked_fill where
    neg clone contiguous detach to alias addcmul log_sigmoid threshold maximum minimum log1p expm1 log2 log10 exp2
    erf sin cos tan asin acos atan atan2 sinh cosh sign floor ceil round trunc remainder floor_divide nan_to_num"""
)
_VIEWS = _names("view reshape permute transpose flatten unflatten unsqueeze squeeze")
_FOLLOWERS = _NORMS | _ELEMENTWISE | _VIEWS
#: Comparisons of values with each other for one network, many times what one of thousands of layers needs: a graph can
#: be made for which they grow with the square of its size.
MAX_STEPS = 20_000_000
#: At most this many tokens (a class token, registers) stand in front of those of the patches.
_MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class StitchPoint:
    """A place whose feature map can be read (`features`) and replaced (`resume`).

    `shape` is `(C, *spatial)`, without the batch; the tensor itself has its channels at `channel_axis`, which is 1 for
    maps `(N, C, *spatial)` and 2 for token sequences `(N, L, C)`. `depth` runs from 0 at the input to 1 at the output,
    counted in layers on the longest way. A `clean` point is all that the output needs to know; otherwise `bypassed`
    are the values that reach the output around it. `block` is True where all readers lie outside the block of modules
    the point belongs to.

    `grid` is the map that a sequence's last tokens are, such as the patches of an image; empty where there is none.
    `tokens` is set on the parts of such a sequence (`parts`): the range of tokens a part consists of.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    depth: float
    clean: bool
    bypassed: tuple[str, ...] = ()
    channel_axis: int = 1
    block: bool = True
    grid: tuple[int, ...] = ()
    tokens: tuple[int, int] | None = None

    @property
    def node(self) -> int:
        """Return the number of the node in the model's graph."""
        return int(self.name[1:].partition(".")[0])

    def parts(self) -> list[StitchPoint]:
        """Return what can be stitched on its own here: the point itself, or the parts of a sequence with a grid.

        These are the patches as a map `(C, *grid)`, under the point's name, and the class token as a vector `(C,)`
        under `<name>.0`: what it says about the whole image answers to another network's vectors or averaged maps.
        Further tokens in front of the patches stay each network's own.
        """
        if not self.grid:
            return [self]
        channels, length = self.shape
        first = length - prod(self.grid)
        part = replace(self, channel_axis=1, clean=self.clean and not first)
        patches = replace(part, shape=(channels, *self.grid), tokens=(first, length))
        token = replace(part, name=f"{self.name}.0", shape=(channels,), tokens=(0, 1))
        return [patches, token] if first else [patches]


#: What `stitchable` has found, as long as the model is there.
_KNOWN: WeakKeyDictionary[PortableModel, dict[tuple[int, ...], list[StitchPoint]]] = WeakKeyDictionary()


def find_points(
    model: PortableModel, shape: Sequence[int] | None = None, budget: Budget = UNLIMITED
) -> list[StitchPoint]:
    """Return the stitch points of `model` in the order in which they are computed.

    `shape` is the input's, `(C, *spatial)` or `(N, C, *spatial)`; it may be left out when the model's sizes are fixed.
    The input, the output and what merely follows or precedes them are no stitch points. Raises `SutureError`
    (`points.shape`, `model.run_failed`) when the model does not run at that size, `points.too_many` when its layers
    are wired so that comparing all of them would not end, and `model.over_budget`.
    """
    return _Finder(model, shape, budget).points()


def stitchable(model: PortableModel, shape: Sequence[int]) -> list[StitchPoint]:
    """Return the points that are worth a stitch: clean cuts and ends of blocks, token sequences in their parts.

    A class token that the network takes out of its sequence itself is there once only. They are found once for a model
    and shape, which takes two dry runs.
    """
    known = _KNOWN.setdefault(model, {})
    if (sizes := tuple(shape)) not in known:
        known[sizes] = _stitchable(model, sizes)
    return list(known[sizes])


def _stitchable(model: PortableModel, shape: Sequence[int]) -> list[StitchPoint]:
    points = [point for point in find_points(model, shape) if point.clean or point.block]
    nodes = {point.node: model.graph.nodes[point.node] for point in points}
    taken_out = {node.args[0] for node in nodes.values() if node.op == "aten.select.int" and node.args[1:] == (1, 0)}
    return [
        part
        for point in points
        for part in point.parts()
        if part.tokens is None or len(part.shape) > 1 or Ref(part.node) not in taken_out
    ]


class _Finder:
    def __init__(self, model: PortableModel, shape: Sequence[int] | None, budget: Budget) -> None:
        graph, self._kinds = model.graph, model.program.kinds
        two, three = (
            measure(model.program, model.tensors, _shapes(graph, shape, batch), budget).tensors for batch in (2, 3)
        )
        self._graph = graph
        self._steps = 0
        self._tensors = two
        self._ends = {ref.node for ref in leaves(graph.output)}
        self._batch_first = [_is_batch_first(a, b) for a, b in zip(two, three, strict=True)]
        #: The input's spatial sizes, where they are fixed.
        self._image = tuple(size for size in graph.inputs[0].shape[2:] if size is not None)
        self._sources = self._flow()
        self._readers: list[list[int]] = [[] for _ in graph.nodes]
        for node, sources in enumerate(self._sources):
            for source in sources:
                self._readers[source].append(node)
        self._modules = sorted({node.module for node in graph.nodes})
        self._channel_axes = self._find_channel_axes()

    def points(self) -> list[StitchPoint]:
        depths = self._depths()
        total = max((depths[end] for end in self._ends), default=0) or 1
        cuts = self._clean_cuts()
        tails = self._tails()
        grids = self._grids(tails)
        following = self._following(cuts)
        return [
            StitchPoint(
                f"n{node}",
                self._graph.nodes[node].module,
                self._shape(node),
                depths[node] / total,
                node in cuts,
                () if node in cuts else self._bypassing(node, following[node]),
                self._channel_axes[node] or 1,
                self._ends_block(node),
                grids[node],
            )
            for node in tails
        ]

    def _flow(self) -> list[list[int]]:
        """Return for each node the earlier nodes whose values, coming from an input, it needs for an output."""
        nodes = self._graph.nodes
        needed = set(self._ends)
        for index in range(len(nodes) - 1, -1, -1):
            if index in needed:
                needed.update(references(nodes[index]))
        from_input = [False] * len(nodes)
        flow: list[list[int]] = []
        for index, node in enumerate(nodes):
            sources = [s for s in dict.fromkeys(references(node)) if from_input[s]] if index in needed else []
            from_input[index] = self._kinds[index] != SIZE_KIND and (node.op == INPUT or bool(sources))
            flow.append(sources if from_input[index] else [])
        return flow

    def _find_channel_axes(self) -> list[int | None]:
        axes: list[int | None] = []
        for index in range(len(self._graph.nodes)):
            axes.append(self._channel_axis(index, axes))
        return axes

    def _channel_axis(self, index: int, axes: list[int | None]) -> int | None:
        """Return which dimension of a node's value holds channels; None where no single one does."""
        node, name = self._graph.nodes[index], _name(self._graph.nodes[index])
        if node.op == INPUT or name in _CHANNELS_SECOND:
            return 1
        if name in _RECURRENT:
            return 2
        tensor = self._tensors[index]
        if name in _CHANNELS_LAST:
            return len(tensor.shape) - 1 if tensor else None
        source = next((s for s in self._sources[index] if axes[s] is not None), None)
        if source is None:
            return None
        axis, before = axes[source], self._tensors[source]
        if tensor is None or before is None:  # an operator with several results, or one of these
            return axis
        assert axis is not None
        return _axis_after(name, node, axis, before.shape, tensor.shape)  # type: ignore[arg-type]  # sizes are known

    def _tails(self) -> list[int]:
        """Return the last suitable node of each group of a layer and its followers, leaving out input and output."""
        group_of: dict[int, int] = {}
        tails: dict[int, int | None] = {}
        for index, sources in enumerate(self._sources):
            if not sources:
                if self._graph.nodes[index].op == INPUT:
                    group_of[index] = index
                continue
            (source, *others) = sources
            follows = _name(self._graph.nodes[index]) in _FOLLOWERS or self._tensors[source] is None
            alone = not others and len(self._readers[source]) == 1 and source not in self._ends
            group = group_of[index] = group_of[source] if follows and alone else index
            tails.setdefault(group, None)
            if self._is_suitable(index):
                tails[group] = index
        left_out = {group_of[end] for end in self._ends if end in group_of}
        left_out |= {index for index, node in enumerate(self._graph.nodes) if node.op == INPUT}
        return sorted(tail for group, tail in tails.items() if tail is not None and group not in left_out)

    def _is_suitable(self, index: int) -> bool:
        tensor = self._tensors[index]
        return (
            tensor is not None
            and self._kinds[index] == TENSOR_KIND
            and self._batch_first[index]
            and tensor.dtype in _FLOATS
            and 2 <= len(tensor.shape) <= 5
            and 0 not in tensor.shape
            and (self._channel_axes[index] or 0) > 0
        )

    def _shape(self, index: int) -> tuple[int, ...]:
        tensor, axis = self._tensors[index], self._channel_axes[index]
        assert tensor is not None
        assert axis is not None
        sizes = [size or 0 for size in tensor.shape]
        return (sizes[axis], *(size for position, size in enumerate(sizes) if position not in (0, axis)))

    def _grids(self, tails: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Return by point the map that a token sequence is in a network for images or volumes of a fixed size.

        As many tokens as a map has that was computed before, or as the image divided into equal patches; the fewest
        tokens left over in front count as class token and registers. Empty where there is none.
        """
        by_point: dict[int, tuple[int, ...]] = dict.fromkeys(tails, ())
        rank = len(self._image)
        if rank < 2:
            return by_point
        maps: dict[int, tuple[int, ...]] = {}  # by how many places they have, the latest
        for index, tensor in enumerate(self._tensors):
            if index in by_point and tensor is not None and self._channel_axes[index] == 2 and len(tensor.shape) == 3:
                length = int(tensor.shape[1] or 0)
                known = [maps[length - left] for left in range(_MOST_PREFIX_TOKENS + 1) if length - left in maps]
                grids = [*known[:1], *self._patches(length)]
                fit = [grid for grid in grids if 0 <= length - prod(grid) <= min(_MOST_PREFIX_TOKENS, prod(grid) - 1)]
                by_point[index] = max(fit, key=prod, default=())
            if self._is_suitable(index) and len(grid := self._shape(index)[1:]) == rank:
                maps[prod(grid)] = grid
        return by_point

    def _patches(self, length: int) -> list[tuple[int, ...]]:
        """Return the image in equal patches, cut off at its edge and filled up there, of up to `length` of them."""

        def cut(side: int) -> tuple[int, ...]:
            return tuple(size // side for size in self._image)

        def filled(side: int) -> tuple[int, ...]:
            return tuple(-(-size // side) for size in self._image)

        sides = range(2, min(self._image) + 1)
        # The larger the side, the fewer patches.
        firsts = [(grid, bisect_left(sides, -length, key=lambda side: -prod(grid(side)))) for grid in (cut, filled)]
        return [grid(sides[first]) for grid, first in firsts if first < len(sides)]

    def _depths(self) -> list[int]:
        """Return the number of layers on the longest way from an input to each node."""
        depths: list[int] = []
        for index, sources in enumerate(self._sources):
            before = max((depths[source] for source in sources), default=0)
            depths.append(before + (bool(sources) and _name(self._graph.nodes[index]) in _LAYERS))
        return depths

    def _clean_cuts(self) -> set[int]:
        """Return the nodes that every way from an input to an output passes: those that dominate the end."""
        start = -1
        dominator: dict[int, int] = {start: start}
        depth = {start: 0}

        def common(a: int, b: int) -> int:
            while a != b:
                self._count(1)
                if depth[a] < depth[b]:
                    b = dominator[b]
                else:
                    a = dominator[a]
            return a

        def place(index: int, sources: Sequence[int]) -> None:
            first, *rest = sources
            for other in rest:
                first = common(first, other)
            dominator[index], depth[index] = first, depth[first] + 1

        for index, sources in enumerate(self._sources):
            if sources:
                place(index, sources)
            elif self._graph.nodes[index].op == INPUT:
                place(index, [start])
        end = len(self._sources)
        place(end, [node if node in dominator else start for node in sorted(self._ends)])
        cuts = set()
        node = dominator[end]
        while node != start:
            cuts.add(node)
            node = dominator[node]
        return cuts

    def _following(self, cuts: set[int]) -> list[int]:
        """Return for each node the next that all ways pass, or the end: nothing gets around a point beyond that."""
        following, after = [0] * len(self._sources), len(self._sources) - 1
        for index in range(len(self._sources) - 1, -1, -1):
            following[index] = after
            if index in cuts:
                after = index
        return following

    def _bypassing(self, point: int, end: int) -> tuple[str, ...]:
        """Return the values that reach an output around `point`: computed without it, read by what follows it."""
        after, around = {point}, set[int]()
        for index in range(point + 1, end + 1):
            sources = self._sources[index]
            self._count(1 + len(sources))
            if not after.isdisjoint(sources):
                after.add(index)
                around.update(source for source in sources if source not in after)
        around |= {index for index in self._ends if index not in after and self._sources[index] and index <= end}
        return tuple(f"n{index}" for index in sorted(around))

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise SutureError(
                "points.too_many",
                f"{len(self._graph.nodes)} values whose ways around each other are too many to compare",
                hint="no network that hospitals train is wired like this; export it again, or leave it out",
            )

    def _ends_block(self, index: int) -> bool:
        """Say whether all readers of a point lie outside the block of modules that it is in."""
        own = self._graph.nodes[index].module
        block = own if self._holds_others(own) else own.rpartition(".")[0] or own
        inside = (self._graph.nodes[reader].module for reader in self._readers[index])
        return not any(path == block or path.startswith(f"{block}.") for path in inside) if block else True

    def _holds_others(self, path: str) -> bool:
        """Say whether modules lie inside the one at `path`."""
        first = bisect_left(self._modules, f"{path}.")
        return first < len(self._modules) and self._modules[first].startswith(f"{path}.")


def _name(node: Node) -> str:
    """Return the operator's bare name: `conv2d` of `aten.conv2d.default`."""
    return node.op.split(".")[1] if node.op.startswith("aten.") else node.op


def _shapes(graph: Graph, shape: Sequence[int] | None, batch: int) -> list[tuple[int, ...]]:
    """Return the inputs' shapes with this batch size; `shape`, for the first input, with or without its batch."""
    shapes = []
    for index, spec in enumerate(graph.inputs):
        sizes: Sequence[int | None] = spec.shape[1:]
        if index == 0 and shape is not None:
            sizes = tuple(shape)[-len(sizes) :] if sizes else ()
        if any(size is None for size in sizes):
            raise SutureError(
                "points.shape",
                f"input {index} takes any size: {spec.shape}",
                hint="give the shape (C, *spatial) at which the model will be used",
            )
        shapes.append((batch, *(int(size) for size in sizes if size is not None)))
    return shapes


def _is_batch_first(two: Input | None, three: Input | None) -> bool:
    """Say whether the first size, and no other, is the batch: 2 in one run and 3 in the other."""
    if two is None or three is None or not two.shape:
        return False
    return two.shape[0] == 2 and three.shape[0] == 3 and two.shape[1:] == three.shape[1:]


def _axis_after(name: str, node: Node, axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Return where the channels of the first source are in the result of an operator."""
    if name in ("permute", "transpose"):
        order = list(range(len(before)))
        if name == "permute":
            order = [int(d) % len(before) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
        else:
            a, b = (int(d) % len(before) for d in node.args[1:3])  # type: ignore[arg-type]
            order[a], order[b] = b, a
        return order.index(axis)
    if name in ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"):
        return _same_dimension(before, axis, after)
    if name in ("select", "mean", "sum", "amax", "var", "linalg_vector_norm") and len(after) < len(before):
        position = 2 if name == "linalg_vector_norm" else 1
        dims = node.args[position] if len(node.args) > position else ()
        removed = {int(d) % len(before) for d in (dims if isinstance(dims, tuple) else (dims,))}  # type: ignore[arg-type]
        return None if axis in removed else axis - sum(d < axis for d in removed)
    return axis if len(before) == len(after) and name not in ("matmul", "bmm", "mm", "einsum") else None


def _same_dimension(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """Return the dimension of a view that is dimension `axis` of its source: as large, with as much before it."""
    leading = prod(before[:axis])
    for position, size in enumerate(after):
        if size == before[axis] and prod(after[:position]) == leading and position > 0:
            return position
    return None
