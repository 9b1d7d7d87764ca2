"""LSTM and GRU kept whole while a module is recorded.

torch's recording walks through every time step to learn the sizes of the results: it takes minutes for a signal of a
thousand steps and fixes their number. The twins here state those sizes at once, and become the operators they stand
for when the recording is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suture_stitching.portable.schemas import recurrent_output


@torch.library.custom_op("suture::lstm", mutates_args=())
def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `aten.lstm.input`."""
    return torch.ops.aten.lstm.input(  # type: ignore[no-any-return]
        input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )


@lstm.register_fake
def _(
    input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, num_layers: int, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return recurrent_output(input, hx[0], *how[-2:]), torch.empty_like(hx[0]), torch.empty_like(hx[1])


@torch.library.custom_op("suture::gru", mutates_args=())
def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """Run `aten.gru.input`."""
    return torch.ops.aten.gru.input(  # type: ignore[no-any-return]
        input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )


@gru.register_fake
def _(
    input: Tensor, hx: Tensor, params: Sequence[Tensor], has_biases: bool, num_layers: int, *how: Any
) -> tuple[Tensor, Tensor]:
    return recurrent_output(input, hx, *how[-2:]), torch.empty_like(hx)


#: The operators of a portable model that the twins become.
STANDS_FOR: dict[Any, str] = {
    torch.ops.suture.lstm.default: "aten.lstm.input",
    torch.ops.suture.gru.default: "aten.gru.input",
}


def whole(func: Any, args: Sequence[Any]) -> Any:
    """Return the twin of a call of `torch.lstm` or `torch.gru` on padded sequences; None for any other call."""
    if func is torch.lstm and len(args) == 9 and isinstance(args[1], list | tuple):
        return lstm
    if func is torch.gru and len(args) == 9 and isinstance(args[2], list | tuple):
        return gru
    return None
