"""Segmentation: one label per position; the metric is the mean Dice coefficient of the labels but the background."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.documents import MeasuredMetric, Metric
from suture_stitching.objectives.classification import Labelled
from suture_stitching.objectives.distances import DISTANCES
from suture_stitching.objectives.objective import whole


class Segmentation(Labelled):
    """Targets `(N, *spatial)`; the first label of the ensemble is the background.

    Labels that the dataset does not have are not looked at: what it left undrawn may be there all the same.
    """

    metric: Metric = "dice"

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy plus soft Dice loss (Milletari, Navab and Ahmadi, "V-Net", 2016)."""
        truth = self._one_hot(targets).to(combined.dtype)
        axes = tuple(range(2, combined.dim()))
        overlap = (combined * truth).sum(axes)
        size = combined.sum(axes) + truth.sum(axes)
        dice = (2 * overlap + 1) / (size + 1)
        return super().loss(combined, targets) + 1 - dice[:, self._foreground(dice)].mean()

    def measure(self, combined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return per sample the mean Dice over the foreground labels that it shows or that were predicted.

        1 where neither is the case: there was nothing to find and nothing was found. The tally has per label the sum of
        Dice over the samples that show it, and how many they are.
        """
        truth, drawn = self.positions(targets).flatten(1), set(self._foreground(combined).tolist())
        # One label after another, by comparing: an index of the largest label takes many times as long, and all labels
        # at once would need 8 bytes each for every voxel of a volume.
        largest = combined.amax(1)
        taken, counts, tally = combined[:, 0] == largest, [], largest.new_zeros(2, combined.shape[1]).double()
        for label in range(1, combined.shape[1]):
            predicted = (combined[:, label] == largest) & ~taken
            taken |= predicted
            if label in drawn:
                ours, theirs = predicted.flatten(1).float(), (truth == label).float()
                there = theirs.sum(1)
                counts.append(torch.stack([(ours * theirs).sum(1), ours.sum(1) + there, there]))
        overlap, size, there = torch.stack(counts, 2).double()
        dice = 2 * overlap / size.clamp(min=1)
        tally[:, sorted(drawn)] = torch.stack([(whole(dice) * (there > 0)).sum(0), (there > 0).sum(0).double()])
        shown = size > 0
        mean = (dice * shown).sum(1) / shown.sum(1).clamp(min=1)
        return torch.where(shown.any(1), mean, 1.0), tally.flatten()

    def answers(
        self,
        combined: Tensor,
        targets: Tensor,
        metrics: Sequence[MeasuredMetric],
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Return per sample each of `metrics`, in their order, `(N, len(metrics))`."""
        if not metrics:
            return combined.new_zeros(len(combined), 0)
        drawn = self._foreground(combined).tolist()
        predicted = F.one_hot(combined.argmax(1), combined.shape[1]).movedim(-1, 1)[:, drawn]
        shown = self._one_hot(targets)[:, drawn]
        every = [DISTANCES[metric](predicted, shown, spacing if metric == "hd95_mm" else None) for metric in metrics]
        return torch.stack(every, 1).to(combined.device)

    def classes(self, tally: Tensor) -> dict[int, tuple[int, float]]:
        """Return the labels that samples show, but the background, with the mean Dice of those samples."""
        return self.shares(*tally.reshape(2, -1))

    def _foreground(self, like: Tensor) -> Tensor:
        """Return where the dataset's labels but the background stand in the ensemble."""
        return self._indices[self._indices != 0].to(like.device)

    def _one_hot(self, targets: Tensor) -> Tensor:
        return F.one_hot(self.positions(targets), len(self.space.labels)).movedim(-1, 1).bool()
