"""Twins of torch's functions that stand in for them while a module is recorded.

torch's recording walks through every time step of a recurrent layer to learn the sizes of the results: it takes minutes
for a signal of a thousand steps and fixes their number. For normalisation in evaluation it does all of the arithmetic
on sizes, which takes half of the time of a recording. The twins here state those sizes at once, and become the
operators they stand for when the recording is converted. Others leave free what torch makes a number of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suture_stitching.portable.schemas import recurrent_output

#: How all recurrent layers run, beside their inputs, states and weights.
_HOW = "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"


def _recurrent(name: str, states: int) -> Any:
    """Return the twin of `aten.<name>.input`, a recurrent layer whose cells have one state or two."""
    operator = getattr(torch.ops.aten, name).input
    reads, gives = "Tensor" if states == 1 else "Tensor[]", ", ".join(["Tensor"] * (1 + states))
    schema = f"(Tensor input, {reads} hx, Tensor[] params, {_HOW}) -> ({gives})"
    twin = torch.library.custom_op(f"suture::{name}", operator, mutates_args=(), schema=schema)

    def sized(input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int, *how: Any) -> Any:
        first, *more = (hx,) if states == 1 else hx
        return recurrent_output(input, first, *how[-2:]), *(torch.empty_like(state) for state in (first, *more))

    twin.register_fake(sized)
    return twin


#: Normalisation in evaluation.
_NORM: Any = torch.library.custom_op(
    "suture::batch_norm",
    torch.ops.aten.batch_norm.default,
    mutates_args=(),
    schema="(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, "
    "float momentum, float eps, bool cudnn_enabled) -> Tensor",
)
_NORM.register_fake(lambda input, *_: torch.empty_like(input))

#: By what modules call, the twins of layers whose cells have one state.
_ONE_STATE = {getattr(torch, name): _recurrent(name, 1) for name in ("gru", "rnn_tanh", "rnn_relu")}
_LSTM = _recurrent("lstm", 2)
#: The operators of a portable model that the twins become.
STANDS_FOR: dict[Any, str] = {
    torch.ops.suture.batch_norm.default: "aten.batch_norm.default",
    torch.ops.suture.lstm.default: "aten.lstm.input",
    torch.ops.suture.gru.default: "aten.gru.input",
    torch.ops.suture.rnn_tanh.default: "aten.rnn_tanh.input",
    torch.ops.suture.rnn_relu.default: "aten.rnn_relu.input",
}


def twin_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, free: bool) -> Callable[[], Any] | None:
    """Return a call of the twin of this call; None where there is none. Lengths, too, may be `free`."""
    if func is F.batch_norm and not _argument(args, kwargs, 5, "training", False):
        return lambda: _batch_norm(*args, **kwargs)
    if func in _DROPOUTS and not _argument(args, kwargs, 2, "training", True):
        return lambda: _argument(args, kwargs, 0, "input", None)
    if func is torch.lstm and len(args) == 9 and isinstance(args[1], list | tuple):
        return lambda: _LSTM(*args)
    if func in _ONE_STATE and len(args) == 9 and isinstance(args[2], list | tuple):
        return lambda: _ONE_STATE[func](*args)
    if free and func in (F.max_pool1d, torch.max_pool1d) and not kwargs.get("return_indices"):
        # torch's own fixes the length to that of the example.
        return lambda: _max_pool1d(*args, **kwargs)
    if func in (torch.take_along_dim, Tensor.take_along_dim) and _argument(args, kwargs, 2, "dim", None) is not None:
        return lambda: _along(*args, **kwargs)
    if func == Tensor.data.__get__:  # type: ignore[attr-defined]
        return lambda: args[0].detach()
    if func is F.embedding_bag and _is_plain(*args, **kwargs):
        return lambda: _bags(*args, **kwargs)
    return None


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)


def _max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    def row(size: Any, other: int) -> tuple[int, int]:
        return (other, size[0] if isinstance(size, list | tuple) else size)

    stride = row(stride, 1) if stride else row(kernel_size, 1)
    rows = input.unsqueeze(-2)
    return F.max_pool2d(rows, row(kernel_size, 1), stride, row(padding, 0), row(dilation, 1), ceil_mode).squeeze(-2)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    cudnn = torch.backends.cudnn.enabled
    args = (input, weight, bias, running_mean, running_var, training, momentum or 0.0, eps, cudnn)
    normalised: Tensor = _NORM(*args)
    return normalised


def _along(input: Tensor, indices: Tensor, dim: int) -> Tensor:
    """Gather with sizes that broadcast."""
    axis = dim % input.dim()
    pairs = enumerate(zip(input.shape, indices.shape, strict=True))
    sizes = [-1 if place == axis or a is b else max(a, b) for place, (a, b) in pairs]
    return input.expand(sizes).gather(axis, indices.expand(sizes))


def _is_plain(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> bool:
    """Say whether all bags of embeddings are `(N, L)` of one length, to be averaged or added up."""
    asked = (offsets, max_norm, per_sample_weights, padding_idx)
    return input.dim() == 2 and all(value is None for value in asked) and mode in ("mean", "sum")


def _bags(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    rows = F.embedding(input, weight)
    return rows.sum(1) if _argument(args, kwargs, 4, "mode", "mean") == "sum" else rows.mean(1)
