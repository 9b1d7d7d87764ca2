"""What is no operator of the list, written by those that are.

Our own forms come first: one or two lines each, with the same values. Then torch's: what it computes a composite
operator from, and its table of decompositions. Each is recorded on the shapes of the node that it takes the place of,
and what it is made of is looked at in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from suture_stitching.portable.rewrite import replace_results, write_elsewhere

_aten = torch.ops.aten
#: In the meta of a node, the operator that the module's author wrote.
WRITTEN = "suture_written"
#: How deep decompositions of decompositions go.
_DEEPEST = 6
#: How many places what is added by index may be compared with.
_MOST_PLACES = 2**16


def decompose(program: ExportedProgram, wanted: Callable[[fx.Node], bool]) -> None:
    """Replace the operators of `program` that are `wanted` by what they are made of, as far as that is known."""
    graph, sizes = program.graph, _fake_mode(program)
    waiting = [(node, 0) for node in graph.nodes if wanted(node)]
    for node, depth in waiting:
        body = _recorded(node, sizes) if depth < _DEEPEST else None
        if body is not None:
            waiting += [(new, depth + 1) for new in _put(node, body) if wanted(new)]


def _fake_mode(program: ExportedProgram) -> Any:
    """Return the mode in which the sizes of the recording live."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    return detect_fake_mode([value for value in values if isinstance(value, Tensor)])


def _recorded(node: fx.Node, sizes: Any) -> fx.Graph | None:
    """Return the graph of what `node` computes, with what it reads as placeholders; None where no form is known."""
    target: Any = node.target
    own = OWN.get(target)
    composite = own is None and _is_composite(target)
    function = own or (target if composite else decomposition_table.get(target))
    if function is None:
        return None
    flat, spec = pytree.tree_flatten((node.args, node.kwargs))

    def body(*values: Any) -> Any:
        read = iter(values)
        args, kwargs = pytree.tree_unflatten([next(read) if isinstance(arg, fx.Node) else arg for arg in flat], spec)
        return function(*args, **kwargs)

    values = [arg.meta["val"] for arg in flat if isinstance(arg, fx.Node)]
    try:
        # Below autograd, torch takes composite operators apart by itself; above it, what forms say is left whole.
        with sizes:
            traced = make_fx(body, pre_dispatch=not composite)(*values)
    except Exception:  # torch's forms raise dozens of types for arguments that they were not made for
        return None
    graph: fx.Graph = traced.graph
    write_elsewhere(graph.nodes)
    graph.eliminate_dead_code()
    return graph if all(part.target is not node.target for part in graph.nodes) else None


def _is_composite(target: Any) -> bool:
    key = "CompositeImplicitAutograd"
    return hasattr(target, "name") and torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), key)


def _put(node: fx.Node, body: fx.Graph) -> list[fx.Node]:
    """Put the operators of `body` where `node` is, and return them."""
    sources = [arg for arg in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(arg, fx.Node)]
    values = dict(zip(body.find_nodes(op="placeholder"), sources, strict=True))
    with node.graph.inserting_before(node):
        for part in body.nodes:
            if part.op == "call_function":
                values[part] = node.graph.node_copy(part, values.__getitem__)
                origin = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
                values[part].meta = {**part.meta, **origin, WRITTEN: node.meta.get(WRITTEN, node.target)}
    new = [values[part] for part in body.nodes if part.op == "call_function"]
    results: Any = fx.node.map_arg(body.output_node().args[0], values.__getitem__)
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        replace_results(node, results)
    node.graph.erase_node(node)
    return new


class _NoForm(Exception):  # it is caught where it is raised from
    """These arguments have no form."""


def _scalar(like: Tensor, number: Any) -> Tensor:
    """Return a number as a tensor that leaves the type of `like` as the number would."""
    whole = isinstance(number, int) and not isinstance(number, bool)
    wide = torch.int64 if whole else torch.bool if isinstance(number, bool) else torch.get_default_dtype()
    return torch.full((), number, dtype=wide, device=like.device)


def _zeros(size: Sequence[Any], like: Tensor | None = None, fill: Any = 0, **kwargs: Any) -> Tensor:
    dtype = kwargs.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
    device = kwargs.get("device") or ("cpu" if like is None else like.device)
    return torch.full(size, fill, dtype=dtype, device=device)


def _one_hot(codes: Tensor, classes: int = -1) -> Tensor:
    if classes < 0:
        raise _NoForm
    return (codes.unsqueeze(-1) == torch.arange(classes, device=codes.device)).to(torch.int64)


def _put_where(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Write `values` where a mask is true; other indices have no form."""
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != torch.bool or values.dim() or accumulate:
        raise _NoForm
    for _ in range(x.dim() - mask.dim()):
        mask = mask.unsqueeze(-1)
    return torch.where(mask, values.to(x.dtype), x)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = x.sort(dim)
    middle = (x.shape[dim] - 1) // 2
    values, places = values.narrow(dim, middle, 1), places.narrow(dim, middle, 1)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _kth(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = (part.narrow(dim, k - 1, 1) for part in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _quantile(
    x: Tensor, q: Tensor, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Tensor:
    """Return quantiles by sorting; they come first where there are several."""
    if interpolation != "linear" or dim is None or q.dim() > 1:
        raise _NoForm
    ordered, place = x.sort(dim).values, q.reshape(-1) * (x.shape[dim] - 1)
    low, high = (ordered.index_select(dim, bound.to(torch.int64)) for bound in (place.floor(), place.ceil()))
    sizes = [1] * x.dim()
    sizes[dim] = -1
    values = low + (high - low) * place.frac().reshape(sizes)
    values = torch.where(x.isnan().any(dim, keepdim=True), torch.full((), math.nan, dtype=x.dtype), values)
    if q.dim() == 0:
        return values if keepdim else values.squeeze(dim)
    values = values.unsqueeze(0).transpose(0, dim % x.dim() + 1)
    return values if keepdim else values.squeeze(dim % x.dim() + 1)


def _places(index: Tensor, size: Any) -> Tensor:
    """Return for each index, on a last axis of `size`, where it points."""
    if not isinstance(size, int) or not isinstance(index.shape[-1], int) or size * index.shape[-1] > _MOST_PLACES:
        raise _NoForm
    return index.unsqueeze(-1) == torch.arange(size, device=index.device)


def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    dim %= x.dim()
    if any(axis != dim and not index.shape[axis] == source.shape[axis] == x.shape[axis] for axis in range(x.dim())):
        raise _NoForm
    source = source.narrow(dim, 0, index.shape[dim]).movedim(dim, -1)
    places = _places(index.movedim(dim, -1), x.shape[dim]).to(x.dtype)
    return x + (source.unsqueeze(-1) * places).sum(-2).movedim(-1, dim)


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    places = _places(index, x.shape[dim]).to(x.dtype)
    return x + (source.movedim(dim, -1) @ places).movedim(-1, dim) * alpha


def _cosine(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = [torch.linalg.vector_norm(side, dim=dim, keepdim=True).clamp(min=eps) for side in (x, y)]
    cosine: Tensor = ((x / lengths[0]) * (y / lengths[1])).sum(dim)
    return cosine


def _range(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    dims = [] if dim is None else [dim]
    return x.amin(dims, keepdim), x.amax(dims, keepdim)


def _with_mean(spread: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        dims = list(range(x.dim())) if dim is None else dim
        return spread(x, dims, correction=1 if correction is None else correction, keepdim=keepdim), x.mean(
            dims, keepdim
        )

    return both


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return (x / (1 - x)).log()


def _unpooled(x: Tensor, places: Tensor, size: Sequence[Any]) -> Tensor:
    """Put what was pooled, `(N, C, ...)`, where it came from in maps of this `size`."""
    first = x.dim() - len(size)
    space = torch.zeros((*x.shape[:first], math.prod(size)), dtype=x.dtype, device=x.device)
    return space.scatter(first, places.flatten(first), x.flatten(first)).reshape(*x.shape[:first], *size)


def _without_ones(x: Tensor) -> Tensor:
    """Drop axes of size one: a batch of one sample stays a batch."""
    return x.squeeze([axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1])


def _lstm_cell(x: Tensor, state: Sequence[Tensor], w: Tensor, u: Tensor, b: Any = None, c: Any = None) -> Any:
    enters, forgets, new, leaves = (F.linear(x, w, b) + F.linear(state[0], u, c)).chunk(4, 1)
    cell = forgets.sigmoid() * state[1] + enters.sigmoid() * new.tanh()
    return leaves.sigmoid() * cell.tanh(), cell


def _gru_cell(x: Tensor, state: Tensor, w: Tensor, u: Tensor, b: Any = None, c: Any = None) -> Tensor:
    (r, z, n), (own_r, own_z, own_n) = F.linear(x, w, b).chunk(3, 1), F.linear(state, u, c).chunk(3, 1)
    new, kept = (n + (r + own_r).sigmoid() * own_n).tanh(), (z + own_z).sigmoid()
    return new + kept * (state - new)


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    y = _aten.batch_norm.default(x, weight, bias, mean, var, False, momentum, eps, True)
    return y, y, y  # the statistics, which nobody reads in evaluation


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    more: Any,
    groups: int,
) -> Tensor:
    """Convolve, as TorchScript writes it for one to three axes."""
    name = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    how: dict[str, Any] = {"output_padding": more} if transposed else {}
    convolved: Tensor = getattr(F, name)(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **how
    )
    return convolved


#: Forms of ours; what they do not say, torch does.
OWN: dict[Any, Callable[..., Any]] = {
    _aten.square.default: lambda x: x * x,
    _aten.reciprocal.default: lambda x: (x if x.is_floating_point() else x.to(torch.get_default_dtype())) ** -1,
    _aten.where.ScalarOther: lambda c, x, y: torch.where(c, x, _scalar(x, y)),
    _aten.where.ScalarSelf: lambda c, x, y: torch.where(c, _scalar(y, x), y),
    _aten.where.Scalar: lambda c, x, y: torch.where(c, _scalar(c, x), _scalar(c, y)),
    _aten.masked_fill.Tensor: lambda x, mask, value: torch.where(mask, value.to(x.dtype), x),
    _aten.index_put.default: _put_where,
    _aten.median.dim: _median,
    _aten.kthvalue.default: _kth,
    _aten.quantile.default: _quantile,
    _aten.scatter_add.default: _scatter_add,
    _aten.index_add.default: _index_add,
    # Over all samples: what it makes of them is compared with each sample alone.
    _aten.max.default: lambda x: x.amax(),
    _aten.min.default: lambda x: x.amin(),
    _aten.cosine_similarity.default: _cosine,
    _aten.bilinear.default: _bilinear,
    _aten.lstm_cell.default: _lstm_cell,
    _aten.gru_cell.default: _gru_cell,
    _aten.aminmax.default: _range,
    _aten.var_mean.correction: _with_mean(torch.var),
    _aten.std_mean.correction: _with_mean(torch.std),
    _aten.logit.default: _logit,
    _aten.hypot.default: lambda x, y: (x * x + y * y).sqrt(),
    _aten.max_unpool2d.default: _unpooled,
    _aten.max_unpool3d.default: lambda x, places, size, stride, padding: _unpooled(x, places, size),
    _aten.squeeze.default: _without_ones,
    _aten.one_hot.default: _one_hot,
    _aten.isfinite.default: lambda x: x.abs() < float("inf"),
    _aten.isinf.default: lambda x: x.abs() == float("inf"),
    _aten.logical_and.default: lambda x, y: torch.bitwise_and(x.to(torch.bool), y.to(torch.bool)),
    _aten.logical_or.default: lambda x, y: torch.bitwise_or(x.to(torch.bool), y.to(torch.bool)),
    _aten.logical_xor.default: lambda x, y: torch.bitwise_xor(x.to(torch.bool), y.to(torch.bool)),
    _aten.special_expit.default: torch.sigmoid,
    _aten.rsub.Tensor: lambda x, y, alpha=1: torch.sub(y, x, alpha=alpha),
    _aten.zero.default: torch.zeros_like,
    _aten.new_ones.default: lambda x, size, **how: _zeros(size, x, 1, **how),
    _aten.new_full.default: lambda x, size, fill, **how: _zeros(size, x, fill, **how),
    _aten.new_empty.default: lambda x, size, **how: _zeros(size, x, **how),
    _aten.empty_like.default: lambda x, **how: torch.zeros_like(x, dtype=how.get("dtype")),
    # What nobody wrote to yet says nothing: it is written over, or has no elements.
    _aten.empty.memory_format: lambda size, **how: _zeros(size, **how),
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten.convolution.default: _convolution,
    _aten._convolution.default: lambda *args: _convolution(*args[:9]),
    _aten.rrelu.default: lambda x, lower=0.125, upper=1 / 3, training=False, generator=None: F.leaky_relu(
        x, (lower + upper) / 2
    ),
}
