"""Regression: values per sample; the metric is the mean absolute error, lower is better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.documents import Metric
from suture_stitching.objectives.objective import Objective


class Regression(Objective):
    """Outputs and targets `(N, K)`."""

    metric: Metric = "mae"
    higher_is_better = False

    def combine(self, outputs: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """Return the mean of the members' values."""
        return torch.stack([output.float() for output in outputs]).mean(0)

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(combined, targets.to(combined.dtype))

    def measure(self, combined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's absolute error, averaged over its values, and nothing besides."""
        scores = (combined.double() - targets.double()).abs().flatten(1).mean(1)
        return scores, scores.new_zeros(0)
