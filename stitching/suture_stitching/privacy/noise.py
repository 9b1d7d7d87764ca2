"""Noise that nobody can draw again: normal numbers from the system's own source of randomness."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def normal(shape: Sequence[int]) -> Tensor:
    """Return independent standard normal numbers of this shape, float64, each from 64 random bits of its own.

    No generator with a seed stands between. torch's own keeps 32 bits of what it is seeded with on a processor: who
    knows a few of its numbers, such as those added to a feature that is always 0, can try every seed and take the noise
    away from all others.
    """
    bits = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype="<u8")
    # Half of the distribution, where small shares are exact, and a sign.
    share = ((bits >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    size = torch.special.ndtri(torch.from_numpy(share))
    sign = torch.from_numpy((bits & np.uint64(1)).astype(np.float64) * 2 - 1)
    drawn: Tensor = (sign * size).reshape(tuple(shape))
    return drawn
