"""How the networks of `digits` and `heart` are made and trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from suture_stitching.running.progress import OnProgress, Progress, ignore


def untrained(design: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network of this design, with the weights that belong to `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return design()


def train(
    module: nn.Module,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int = 30,
    seed: int = 0,
    progress: OnProgress = ignore,
) -> nn.Module:
    """Train `module` in place on `inputs` (N, C, *spatial) and `labels` (N,); return it in evaluation mode."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    module.train()
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        progress(Progress("train", epoch + 1, epochs))
    return module.eval()


def accuracy(module: nn.Module, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the part of `inputs` that `module` names rightly."""
    with torch.no_grad():
        predicted = module(torch.from_numpy(inputs)).argmax(1)
    return float((predicted == torch.from_numpy(labels)).double().mean())
