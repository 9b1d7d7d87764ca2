"""Several labels at once: each is there or not; the metric is the mean F1 of what was found per sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_stitching.documents import Metric
from suture_stitching.tasks.classification import SMALLEST, Labelled

#: A label counts as found from this probability on.
FOUND = 0.5


class Multilabel(Labelled):
    """Targets `(N, K)` of 0 and 1, one column per label of the dataset; labels it does not have count for nothing."""

    metric: Metric = "f1"
    exclusive = False

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy."""
        known = self._known(combined).clamp(SMALLEST, 1 - torch.finfo(combined.dtype).eps)
        return F.binary_cross_entropy(known, targets.to(combined.dtype))

    def scores(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return per sample the F1 of its labels; 1 where there was nothing to find and nothing was found."""
        found, truth = self._known(combined) >= FOUND, targets >= FOUND
        size = (found.sum(1) + truth.sum(1)).double()
        f1 = 2 * (found & truth).sum(1).double() / size.clamp(min=1)
        return torch.where(size > 0, f1, 1.0)

    def _known(self, combined: Tensor) -> Tensor:
        return combined[:, self._indices.to(combined.device)]
