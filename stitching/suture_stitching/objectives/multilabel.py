"""Several labels at once: each is there or not; the metric is the mean F1 of what was found per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.documents import MeasuredMetric, Metric
from suture_stitching.objectives.classification import SMALLEST, Labelled

#: A label counts as found from this probability on.
THRESHOLD = 0.5


class Multilabel(Labelled):
    """Targets `(N, K)` of 0 and 1, one column per label of the dataset; labels it does not have count for nothing."""

    metric: Metric = "f1"
    exclusive = False

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy."""
        known = self._known(combined).clamp(SMALLEST, 1 - torch.finfo(combined.dtype).eps)
        return F.binary_cross_entropy(known, targets.to(combined.dtype))

    def measure(self, combined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return per sample the F1 of its labels, and per label in how many samples it was found and is.

        The F1 is 1 where there was nothing to find and nothing was found.
        """
        predicted, truth = self._known(combined) >= THRESHOLD, targets >= THRESHOLD
        right = predicted & truth
        size = (predicted.sum(1) + truth.sum(1)).double()
        f1 = 2 * right.sum(1).double() / size.clamp(min=1)
        tally = size.new_zeros(2, len(self.space.labels))
        tally[:, self._indices.to(tally.device)] = torch.stack([right.sum(0), truth.sum(0)]).double()
        return torch.where(size > 0, f1, 1.0), tally.flatten()

    def answers(
        self,
        combined: Tensor,
        targets: Tensor,
        metrics: Sequence[MeasuredMetric],
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Return the probabilities of the labels that the dataset has."""
        return super().answers(self._known(combined), targets, metrics)

    def classes(self, tally: Tensor) -> dict[int, tuple[int, float]]:
        """Return the labels that samples have, with the share of those samples where it was found."""
        return self.shares(*tally.reshape(2, -1))

    def _known(self, combined: Tensor) -> Tensor:
        return combined[:, self._indices.to(combined.device)]
