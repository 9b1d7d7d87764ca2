"""Classification: one label per sample; the metric is accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suture_stitching.documents import Metric
from suture_stitching.portable.metadata import ModelMetadata
from suture_stitching.tasks.labels import LabelSpace
from suture_stitching.tasks.task import Task

#: Keeps the logarithm of a probability finite. Far below any that matters, since nothing is learnt from what it holds.
SMALLEST = 1e-30


class Labelled(Task):
    """A task whose members give one score per label: outputs `(N, k, *spatial)` are averaged as probabilities."""

    def __init__(self, members: Sequence[ModelMetadata], labels: Sequence[str], *, where: str = "dataset") -> None:
        self.space = LabelSpace.of([metadata.labels or () for metadata in members])
        self.labels = self.space.labels
        self._formats = [next(iter(metadata.outputs.values())).format for metadata in members]
        self._indices = self.space.indices(labels, where=where)

    def combine(self, outputs: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """Return probabilities `(N, L, *spatial)` float32."""
        return self.space.average(
            [self.probabilities(output, member) for output, member in zip(outputs, members, strict=True)], members
        )

    def probabilities(self, output: Tensor, member: int) -> Tensor:
        """Return one member's output as probabilities of its own labels."""
        return output.float().softmax(1) if self._formats[member] == "logits" else output.float()

    def positions(self, targets: Tensor) -> Tensor:
        """Return targets as positions among the ensemble's labels."""
        return self._indices.to(targets.device)[targets]

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        chosen = combined.gather(1, self.positions(targets).unsqueeze(1)).squeeze(1)
        return -chosen.clamp(min=SMALLEST).log().mean()


class Classification(Labelled):
    """Targets `(N,)`; a sample's score is 1 where the most probable label is the right one."""

    metric: Metric = "accuracy"

    def scores(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return 1.0 or 0.0 per sample."""
        return (combined.argmax(1) == self.positions(targets)).to(torch.float64)
