"""Where a tensor lies in memory: that, too, decides the last bits of what is computed from it.

A kernel goes through memory in steps of up to 64 bytes. Depending on the processor, it may treat what lies before the
first whole step by itself, and it reads a matrix that lies column by column in another order: the same numbers are then
added up in another order. So what a result depends on is brought to one layout, that of torch's own allocator.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bytes to a multiple of which torch's allocator aligns what it gives out.
ALIGNMENT = 64


def settled(tensor: Tensor) -> Tensor:
    """Return `tensor` row by row at an aligned address: itself where it lies so already, else a copy."""
    return tensor if _is_settled(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _is_settled(tensor: Tensor) -> bool:
    stride = 1
    # Axes of size 1 are looked at as well: matrix products choose their way by them.
    for size, own in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if own != stride:
            return False
        stride *= max(size, 1)
    return tensor.device.type != "cpu" or tensor.data_ptr() % ALIGNMENT == 0
