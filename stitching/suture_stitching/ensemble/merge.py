"""One graph out of several members: stitched at their matches, outputs averaged.

    merge = Merge(members, objective)
    values = merge.join([join])                  # every node's value, with the members mixed at one match
    graph = merge.graph(merge.ensemble(values))

Equal operations on equal values become one node. So any number of candidates can live in one graph, in which each
member runs once up to the stitch points and only what lies behind them is repeated; and a composed model is the very
same nodes as the candidate that was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_contract.compatibility import channel_weights
from suture_contract.errors import SutureError
from suture_contract.model.graph import INPUT, TENSOR, DType, Graph, Input, Output, Ref, Value, substitute
from suture_contract.model.graph import Node as GraphNode
from suture_contract.model.graph_json import leaves
from suture_stitching.ensemble.members import Member, shared_input
from suture_stitching.features.points import StitchPoint
from suture_stitching.objectives import Objective
from suture_stitching.objectives.classification import Labelled
from suture_stitching.prior import LEAST_SHARE

#: The values of a member's nodes, in the order of its own graph.
Values = list[Ref]
#: Beyond the end of any sequence.
_END = 2**63 - 1


@dataclass(frozen=True)
class GateTensors:
    """Where a gate looks, the names of its tensors and its two distances; see `familiarity`."""

    points: Mapping[int, StitchPoint]
    weight: str
    bias: str
    near: float
    far: float
    #: The member that leaves unfamiliar samples to the others; None if there all count alike.
    withdraws: int | None = None


@dataclass(frozen=True)
class Join:
    """A match, ready to build: a stitch point per member, and the names of the stitches' tensors by (source, target).

    Weights are `(out, in)`, biases `(out,)`.
    """

    points: Mapping[int, StitchPoint]
    alpha: float
    stitches: Mapping[tuple[int, int], tuple[str, str]]


class Merge:
    """A graph under construction. Tensors of member `m` are named `m<m>.<name>`, those of stitches `stitch.<name>`."""

    def __init__(
        self,
        members: Sequence[Member],
        objective: Objective,
        stitches: Mapping[str, Tensor] | None = None,
        prior: Sequence[float] | None = None,
    ) -> None:
        """`prior` are the shares of the ensemble's labels that candidates with a site prior assume."""
        self.members = members
        self.tensors: dict[str, Tensor] = {}
        self._objective = objective
        self._stitches = stitches or {}
        self._prior = prior
        self._members_tensors = [member.model.tensors for member in members]
        self._nodes: list[GraphNode] = []
        self._known: dict[str, Ref] = {}
        self._shared = shared_input(members)
        self._free_sizes = None in self._shared.spatial_shape
        self._input = self._add(INPUT, 0)
        self.native: list[Values] = [self._walk(m, [], 0) for m in range(len(members))]

    def graph(self, output: Output) -> Graph:
        """Return what was built so far, with this output."""
        read = Input((None, self._shared.num_channels, *self._shared.spatial_shape), "float32")
        return Graph((read,), tuple(self._nodes), output)

    def point(self, values: Sequence[Values], member: int, point: StitchPoint) -> Ref:
        """Return the value of a member's stitch point among `values`, in the layout that the point states."""
        value = values[member][point.node]
        if point.tokens is None:
            return value
        if len(point.shape) == 1:
            return self._add("aten.select.int", value, 1, point.tokens[0])
        patches = self._add("aten.permute.default", self._tokens(value, *point.tokens), (0, 2, 1))
        return self._add("aten.unflatten.int", patches, 2, point.shape[1:])

    def distinct(self, member: int, points: Sequence[StitchPoint]) -> list[StitchPoint]:
        """Return a member's `points` without those that say what one before them says.

        In a stitched ensemble, the part of a sequence that was stitched is a point of its own as well.
        """
        first: dict[Ref, StitchPoint] = {}
        for point in points:
            first.setdefault(self.point(self.native, member, point), point)
        return list(first.values())

    def join(self, joins: Sequence[Join], gate: GateTensors | None = None) -> list[Values]:
        """Return all members' values when they are mixed at `joins`, which are in the order of the networks.

        With a `gate`, they are mixed as far as a sample is familiar.
        """
        values = [list(native) for native in self.native]
        last: dict[int, int] = {}
        for join in joins:
            for member, point in join.points.items():
                if member in last:
                    self._walk(member, values[member], last[member] + 1, point.node + 1)
            before = {member: self.point(values, member, point) for member, point in join.points.items()}
            weight = self._mixing_weight(join, gate)
            # All steps come first: then nobody reads any more what is mixed, and it can be overwritten.
            steps = {member: self._step(join, member, before) for member in join.points}
            for member, point in join.points.items():
                mixed = self._mixed(before[member], steps[member], weight, point)
                values[member][point.node] = self._put(mixed, point, values[member][point.node])
                last[member] = point.node
        for member, node in last.items():
            self._walk(member, values[member], node + 1)
        return values

    def check_priors(self) -> None:
        """Raise `SutureError` `candidates.prior` unless each member declares shares that can be divided out."""
        silent = next((member.ref.repo for member in self.members if member.prior is None), None)
        if silent is not None or self._prior is None:
            raise SutureError(
                "candidates.prior",
                "a candidate needs shares of labels that this member does not declare",
                where=silent or "candidates.json",
                hint="fit again: these candidates are of other models",
            )

    def candidate(
        self,
        joins: Sequence[Join],
        gate: GateTensors | None = None,
        members: Sequence[int] | None = None,
        *,
        site_prior: bool = False,
    ) -> Ref:
        """Return the output of `members` (default all) when they are mixed at `joins` as far as a sample is familiar.

        As far as it is not, the member that `gate` may name withdraws, and the output is that of the others. Without
        `joins` that member is alone with familiar samples. With a `site_prior` the members' own shares of labels are
        divided out, and the graph's are put in.
        """
        members = range(len(self.members)) if members is None else members
        output = self._routed(self.join(joins, gate), gate, members, alone=not joins, neutral=site_prior)
        if not site_prior:
            return output
        assert self._prior is not None
        shares = torch.tensor(self._prior).clamp(min=LEAST_SHARE)
        return self._reweighed(output, "prior.site", shares, max(map(self._output_rank, members)))

    def _routed(
        self, values: Sequence[Values], gate: GateTensors | None, members: Sequence[int], *, alone: bool, neutral: bool
    ) -> Ref:
        """Return the output of `members`, of which one may withdraw from unfamiliar samples, or else be `alone`."""
        if gate is None or gate.withdraws is None:
            return self.ensemble(values, members, neutral=neutral)
        familiar = self.ensemble(values, [gate.withdraws] if alone else members, neutral=neutral)
        others = self.ensemble(values, [member for member in members if member != gate.withdraws], neutral=neutral)
        weight = self._with_rank(self._ood_distance(gate), 0, max(map(self._output_rank, members)))
        step = self._add("aten.mul.Tensor", self._add("aten.sub.Tensor", familiar, others), weight)
        return self._add("aten.add.Tensor", others, step)

    def ensemble(self, values: Sequence[Values], members: Sequence[int] | None = None, *, neutral: bool = False) -> Ref:
        """Return the averaged output of `members` (default all): probabilities of the ensemble's labels, or values.

        Where it shall be `neutral`, as if every member had seen all of its labels equally often.
        """
        members = range(len(self.members)) if members is None else members
        outputs = [self._output(values, member) for member in members]
        if neutral:
            outputs = [self._neutral(output, member) for member, output in zip(members, outputs, strict=True)]
        if not isinstance(self._objective, Labelled):
            return self._mean(outputs)
        own, space = self._objective.space, self._objective.space.labels
        if self._know_the_same(members):
            return self._mean(outputs)
        knowing = own.knowing(members)
        placed = []
        for member, output in zip(members, outputs, strict=True):
            place = torch.zeros(len(space), len(own.columns[member]))
            for column, label in enumerate(own.columns[member]):
                place[label, column] = 1 / knowing[label]
            name = f"labels.{member}." + "_".join(map(str, members))
            placed.append(self._affine(output, self._tensor(name, place), None, self._output_rank(member)))
        total = self._sum(placed)
        if not self._objective.exclusive or bool((knowing == knowing[0]).all()):
            return total
        return self._add("aten.div.Tensor", total, self._add("aten.sum.dim_IntList", total, (1,), True))

    def _neutral(self, output: Ref, member: int) -> Ref:
        """Divide a member's shares of labels out of its probabilities."""
        shares = self.members[member].prior
        assert shares is not None
        weights = 1 / torch.tensor(shares).clamp(min=LEAST_SHARE)
        return self._reweighed(output, f"prior.{member}", weights, self._output_rank(member))

    def _reweighed(self, output: Ref, name: str, weights: Tensor, rank: int) -> Ref:
        """Return probabilities `(N, K, *spatial)` times a weight per label, scaled to sum to one again."""
        weight = self._tensor(name, weights.reshape(1, -1, *(1 for _ in range(rank))))
        weighed = self._add("aten.mul.Tensor", output, weight)
        return self._add("aten.div.Tensor", weighed, self._add("aten.sum.dim_IntList", weighed, (1,), True))

    def _know_the_same(self, members: Sequence[int]) -> bool:
        """Whether all of `members` give every label of the ensemble, in its order."""
        assert isinstance(self._objective, Labelled)
        everything = tuple(range(len(self._objective.space.labels)))
        return all(self._objective.space.columns[member] == everything for member in members)

    def distance(self, gate: GateTensors) -> Ref:
        """Return how far each sample's native features are from what the gate knows, `(N, 1)`."""
        means = []
        for member, point in sorted(gate.points.items()):
            feature = self._map(self.point(self.native, member, point), point)
            rank = len(point.shape) - 1
            means.append(self._add("aten.mean.dim", feature, tuple(range(2, 2 + rank))) if rank else feature)
        side_by_side = self._add("aten.cat.default", tuple(means), 1)
        white = self._affine(side_by_side, self.stitch_node(gate.weight), self.stitch_node(gate.bias), 0)
        return self._add("aten.sum.dim_IntList", self._add("aten.mul.Tensor", white, white), (1,), True)

    def _mixing_weight(self, join: Join, gate: GateTensors | None) -> Ref | float:
        """Return alpha, or alpha times how familiar each sample is."""
        if gate is None or join.alpha == 0:
            return join.alpha
        return self._add("aten.mul.Tensor", self._ood_distance(gate), join.alpha)

    def _ood_distance(self, gate: GateTensors) -> Ref:
        """Return how familiar each sample is, `(N, 1)` from 0 to 1."""
        width = gate.far - gate.near
        fallen = self._add("aten.mul.Tensor", self.distance(gate), -1.0 / width)
        risen = self._add("aten.add.Tensor", fallen, gate.far / width)
        return self._add("aten.clamp.default", risen, 0.0, 1.0)

    def _step(self, join: Join, member: int, before: Mapping[int, Ref]) -> Ref:
        """Return `mean of the translated features - own`, as `(N, C, *spatial)`: where mixing leads a member.

        Every weight and every gate that is tried goes along the same step.
        """
        point, sources = join.points[member], [source for source in join.points if source != member]
        own, rank = self._map(before[member], point), len(point.shape) - 1
        translated = self._mean([self._translated(join, source, member, before[source], own) for source in sources])
        bias = self._mean([self.stitch_node(join.stitches[source, member][1]) for source in sources])
        for _ in range(rank):
            bias = self._add("aten.unsqueeze.default", bias, -1)
        return self._add("aten.sub.Tensor", self._add("aten.add.Tensor", translated, bias), own)

    def _mixed(self, own: Ref, step: Ref, weight: Ref | float, point: StitchPoint) -> Ref:
        """Return `own + weight * step`, in the layout of the member's own point."""
        own = self._map(own, point)
        if isinstance(weight, Ref):
            mixed = self._add("aten.addcmul.default", own, step, self._with_rank(weight, 0, len(point.shape) - 1))
        else:
            mixed = self._add("aten.add.Tensor", own, step, alpha=weight)
        return self._unmap(mixed, point)

    def _translated(self, join: Join, source: int, target: int, feature: Ref, own: Ref) -> Ref:
        """Return what a source's feature is at the target's point, without the bias; `own` is what is there."""
        matrix, here, there = (
            self.stitch_node(join.stitches[source, target][0]),
            join.points[target],
            join.points[source],
        )
        feature, rank, spatial = self._map(feature, there), len(here.shape) - 1, there.shape[1:]
        if rank and spatial:
            return self._affine(self._resampled(feature, spatial, here.shape[1:], like=own), matrix, None, rank)
        feature = self._affine(self._resampled(feature, spatial, (), like=own), matrix, None, 0)
        return self._with_rank(feature, 0, rank)

    def _walk(self, member: int, values: Values, start: int, stop: int | None = None) -> Values:
        """Give the nodes `start` to `stop` of a member their values, reading those in `values` before them."""
        model = self.members[member].model
        for index, node in enumerate(model.graph.nodes[start:stop], start=start):
            if node.op == INPUT:
                value = self._prepared(member)
            elif node.op == TENSOR:
                name = str(node.args[0])
                value = self._tensor(f"m{member}.{name}", self._members_tensors[member][name])
            else:
                args = tuple(substitute(arg, lambda ref: values[ref.node]) for arg in node.args)
                kwargs = {name: substitute(arg, lambda ref: values[ref.node]) for name, arg in node.kwargs.items()}
                value = self._add(node.op, *args, module=f"m{member}.{node.module}".rstrip("."), **kwargs)
            if index < len(values):
                values[index] = value
            else:
                values.append(value)
        return values

    def _prepared(self, member: int) -> Ref:
        """Return the ensemble's input as the member reads it: its channels, value range and size, normalised."""
        spec, x, shared = self.members[member].input, self._input, self._shared
        rank = len(spec.spatial_shape)
        have, want = (shared.num_channels, shared.channels), (spec.num_channels, spec.channels)
        weights = channel_weights(have, want, spec.format)
        if weights is not None:
            x = self._affine(x, self._tensor(f"input.{member}.channels", torch.tensor(weights)), None, rank)
        ours, theirs = shared.value_range, spec.value_range
        if ours and theirs and ours != theirs:
            x = self._add("aten.sub.Tensor", x, float(ours[0]))
            x = self._add("aten.mul.Tensor", x, (theirs[1] - theirs[0]) / (ours[1] - ours[0]))
            x = self._add("aten.add.Tensor", x, float(theirs[0]))
        x = self._at_size(x, shared.spatial_shape, spec.spatial_shape)
        if spec.preprocessing is not None:
            axes = (1, len(spec.preprocessing.mean), *(1 for _ in range(rank)))
            for name, op in (("mean", "aten.sub.Tensor"), ("std", "aten.div.Tensor")):
                numbers = torch.tensor(getattr(spec.preprocessing, name)).reshape(axes)
                x = self._add(op, x, self._tensor(f"input.{member}.{name}", numbers))
        return x

    def _output(self, values: Sequence[Values], member: int) -> Ref:
        """Return a member's output in float32: probabilities of its own labels, at the input's size, or values."""
        graph = self.members[member].model.graph
        output = values[member][_only_output(self.members[member])]
        if graph.outputs and graph.outputs[0].dtype != "float32":
            output = self._add("aten.to.dtype", output, DType("float32"))
        if isinstance(self._objective, Labelled):
            output = self._probabilities(output, member, self._objective)
        if self._output_rank(member):
            read = self.members[member].input.spatial_shape
            output_shape = graph.outputs[0].shape[2:] if graph.outputs else read
            # A mask of free size is as large as what it is of.
            sizes = tuple(size or own for size, own in zip(output_shape, read, strict=True))
            output = self._at_size(output, sizes, self._shared.spatial_shape)
        return output

    def _probabilities(self, output: Ref, member: int, objective: Labelled) -> Ref:
        """Do to a member's output what `Labelled.probabilities` does."""
        logits = next(iter(self.members[member].metadata.outputs.values())).format == "logits"
        if objective.is_binary(member):
            if logits:
                both = (self._add("aten.neg.default", output), output)
                return self._add("aten.sigmoid.default", self._add("aten.cat.default", both, 1))
            return self._add("aten.cat.default", (self._add("aten.rsub.Scalar", output, 1), output), 1)
        if not logits:
            return output
        if objective.exclusive:
            return self._add("aten.softmax.int", output, 1)
        return self._add("aten.sigmoid.default", output)

    def _output_rank(self, member: int) -> int:
        return len(next(iter(self.members[member].metadata.outputs.values())).spatial_shape)

    def _put(self, mixed: Ref, point: StitchPoint, value: Ref) -> Ref:
        """Return the node's `value` with `mixed` at the point; the opposite of `point`."""
        if point.tokens is None:
            return mixed
        start, stop = point.tokens
        if len(point.shape) == 1:
            mixed = self._add("aten.unsqueeze.default", mixed, 1)
        else:
            mixed = self._add("aten.permute.default", self._add("aten.flatten.using_ints", mixed, 2), (0, 2, 1))
        whole = [mixed]
        if start:
            whole.insert(0, self._tokens(value, 0, start))
        if len(point.shape) == 1:
            whole.append(self._tokens(value, stop, _END))
        return self._add("aten.cat.default", tuple(whole), 1) if len(whole) > 1 else mixed

    def _tokens(self, value: Ref, start: int, stop: int) -> Ref:
        """Return these tokens of a sequence `(N, L, C)`."""
        return self._add("aten.slice.Tensor", value, 1, start, stop)

    def _map(self, value: Ref, point: StitchPoint) -> Ref:
        """Return a point's value as `(N, C, *spatial)`."""
        rank = len(point.shape) + 1
        if point.channel_axis == 1:
            return value
        order = (0, point.channel_axis, *(d for d in range(1, rank) if d != point.channel_axis))
        return self._add("aten.permute.default", value, order)

    def _unmap(self, value: Ref, point: StitchPoint) -> Ref:
        """Undo `_map`."""
        rank = len(point.shape) + 1
        if point.channel_axis == 1:
            return value
        order = [0, *range(2, rank)]
        order.insert(point.channel_axis, 1)
        return self._add("aten.permute.default", value, tuple(order))

    def _resampled(self, feature: Ref, spatial: tuple[int, ...], grid: tuple[int, ...], *, like: Ref) -> Ref:
        """Do to a map `(N, C, *spatial)`, or for an empty `grid` to a vector, what `moments.to_grid` does.

        Where sizes are free, the grid is taken from `like` when the model runs.
        """
        if spatial == grid:
            return feature
        if not grid:
            return self._add("aten.mean.dim", feature, tuple(range(2, 2 + len(spatial))))
        size: tuple[Value, ...] = grid
        if self._free_sizes:
            size = tuple(self._add("aten.sym_size.int", like, 2 + axis) for axis in range(len(grid)))
        smaller = all(ours >= theirs for ours, theirs in zip(spatial, grid, strict=True))
        return self._at(feature, size, smaller=smaller)

    def _at_size(self, x: Ref, have: tuple[int | None, ...], want: tuple[int | None, ...]) -> Ref:
        """Resample inputs or outputs `(N, C, *spatial)` from one size to another; what is free in either stays."""
        changed = {axis: (h, w) for axis, (h, w) in enumerate(zip(have, want, strict=True)) if h and w and h != w}
        if not changed:
            return x
        size = tuple(
            changed[axis][1] if axis in changed else self._add("aten.sym_size.int", x, 2 + axis)
            for axis in range(len(have))
        )
        return self._at(x, size, smaller=all(h > w for h, w in changed.values()))

    def _at(self, x: Ref, size: tuple[Value, ...], *, smaller: bool) -> Ref:
        """Resample `(N, C, *spatial)` to `size`: averages where it gets smaller, linear where it gets larger."""
        if smaller:
            return self._add(f"aten.adaptive_avg_pool{len(size)}d.default", x, size)
        name = ("linear1d", "bilinear2d", "trilinear3d")[len(size) - 1]
        return self._add(f"aten.upsample_{name}.vec", x, size, False, None)

    def _with_rank(self, value: Ref, rank: int, wanted: int) -> Ref:
        """Return `(N, C, 1, ...)` with `wanted` instead of `rank` spatial dimensions; all of them have size 1."""
        for _ in range(rank, wanted):
            value = self._add("aten.unsqueeze.default", value, -1)
        for _ in range(wanted, rank):
            value = self._add("aten.squeeze.dim", value, -1)
        return value

    def _affine(self, x: Ref, weight: Ref, bias: Ref | None, rank: int) -> Ref:
        """Apply `(out, in)` and `(out,)` to the channels of `(N, in, *spatial)`: a linear layer or 1x1 convolution.

        On maps it is a matrix product over all positions, which a CPU does many times faster than a convolution.
        """
        if not rank:
            return self._add("aten.linear.default", x, weight, bias)
        positions = self._add("aten.flatten.using_ints", x, 2) if rank > 1 else x
        y = self._add("aten.matmul.default", weight, positions)
        if bias is not None:
            y = self._add("aten.add.Tensor", y, self._add("aten.unsqueeze.default", bias, -1))
        if rank == 1:
            return y
        sizes = tuple(self._add("aten.sym_size.int", x, 2 + axis) for axis in range(rank))
        return self._add("aten.unflatten.int", y, 2, sizes)

    def _mean(self, values: Sequence[Ref]) -> Ref:
        total = self._sum(values)
        return total if len(values) == 1 else self._add("aten.div.Tensor", total, float(len(values)))

    def _sum(self, values: Sequence[Ref]) -> Ref:
        total, *rest = values
        for value in rest:
            total = self._add("aten.add.Tensor", total, value)
        return total

    def stitch_node(self, name: str) -> Ref:
        """Return the node that holds the tensor of a stitch or gate."""
        return self._tensor(f"stitch.{name}", self._stitches[name])

    def _tensor(self, name: str, value: Tensor) -> Ref:
        self.tensors.setdefault(name, value)
        return self._add(TENSOR, name)

    def _add(self, op: str, *args: Value, module: str = "", **kwargs: Value) -> Ref:
        """Return the node that does this, a new one only if there is none."""
        key = repr((op, args, kwargs))
        ref = self._known.get(key)
        if ref is None:
            ref = self._known[key] = Ref(len(self._nodes))
            self._nodes.append(GraphNode(op, args, dict(kwargs), module))
        return ref


def name_of(ref: Ref) -> str:
    """Return the name of a node in a portable model."""
    return f"n{ref.node}"


def _only_output(member: Member) -> int:
    outputs = list(leaves(member.model.graph.output))
    if len(outputs) != 1:
        raise SutureError(
            "member.output",
            f"the model has {len(outputs)} outputs; only models with one can be stitched",
            where=member.ref.repo,
        )
    return outputs[0].node
