"""Classification: one label per sample; the metric is accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.documents import Calibration, Metric
from suture_contract.model.metadata import ModelMetadata
from suture_stitching.objectives.labels import LabelSpace
from suture_stitching.objectives.objective import Objective, whole

#: Keeps the logarithm of a probability finite. Far below any that matters, since nothing is learnt from what it holds.
SMALLEST = 1e-30
#: Of the highest probability, as calibration is mostly reported.
BINS = 15
#: With more labels than this, no label has rows of its own.
_MOST_CLASSES = 200


class Labelled(Objective):
    """An objective whose members give one score per label: outputs `(N, k, *spatial)` are averaged as probabilities.

    A member with one output channel for two labels gives the second one's score, of which both probabilities are made.
    """

    #: Whether a sample (or position) has one label only, so that its probabilities sum to one.
    exclusive = True

    def __init__(self, members: Sequence[ModelMetadata], labels: Sequence[str], *, where: str = "dataset") -> None:
        self.space = LabelSpace.of([metadata.labels or () for metadata in members])
        self.labels = self.space.labels
        self._outputs = [next(iter(metadata.outputs.values())) for metadata in members]
        self._indices = self.space.indices(labels, where=where)

    def combine(self, outputs: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """Return probabilities `(N, L, *spatial)` float32."""
        return self.space.average(
            [self.probabilities(output, member) for output, member in zip(outputs, members, strict=True)],
            members,
            exclusive=self.exclusive,
        )

    def probabilities(self, output: Tensor, member: int) -> Tensor:
        """Return one member's output as probabilities of its own labels."""
        output, logits = output.float(), self._outputs[member].format == "logits"
        if self.is_binary(member):
            return torch.cat([-output, output], 1).sigmoid() if logits else torch.cat([1 - output, output], 1)
        if not logits:
            return output
        return output.softmax(1) if self.exclusive else output.sigmoid()

    def is_binary(self, member: int) -> bool:
        """Say whether one output channel of this member stands for two labels."""
        return self._outputs[member].num_channels == 1 and len(self.space.columns[member]) == 2

    def positions(self, targets: Tensor) -> Tensor:
        """Return targets as positions among the ensemble's labels."""
        return self._indices.to(targets.device)[targets]

    def shares(self, good: Tensor, every: Tensor) -> dict[int, tuple[int, float]]:
        """Return `classes` from the sums of scores and the numbers of samples, `(L,)` each.

        None where there are too many labels for samples of each to say anything.
        """
        if len(self.space.labels) > _MOST_CLASSES:
            return {}
        pairs = enumerate(zip(good.tolist(), every.tolist(), strict=True))
        return {label: (int(n), min(right / n, 1.0)) for label, (right, n) in pairs if n}

    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood."""
        chosen = combined.gather(1, self.positions(targets).unsqueeze(1)).squeeze(1)
        return -chosen.clamp(min=SMALLEST).log().mean()


class Classification(Labelled):
    """Targets `(N,)`; a sample's score is 1 where the most probable label is the right one."""

    metric: Metric = "accuracy"

    def measure(self, combined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1.0 or 0.0 per sample, and a tally.

        It has per bin the surplus of confidence, the squared error, and per label how many samples are right, and all.
        """
        truth = self.positions(targets)
        confidence, predicted = combined.double().max(1)
        confidence = whole(confidence)
        right = (predicted == truth).double()
        bins = (confidence * BINS).long().clamp(0, BINS - 1)  # NaN, which is told of later, has no bin
        surplus = confidence.new_zeros(BINS).index_add(0, bins, confidence - right)
        wanted = F.one_hot(truth, combined.shape[1])
        squared = whole((combined.double() - wanted).square().sum(1)).sum()
        return right, torch.cat([surplus, squared.reshape(1), right @ wanted.double(), wanted.sum(0).double()])

    def calibration(self, tally: Tensor, n: int) -> Calibration:
        """Return expected calibration error and Brier score."""
        ece, brier = float(tally[:BINS].abs().sum()) / n, float(tally[BINS]) / n
        return Calibration(ece=min(ece, 1.0), brier=min(brier, 2.0))

    def classes(self, tally: Tensor) -> dict[int, tuple[int, float]]:
        """Return the labels that samples have, with the share of those samples that are right."""
        return self.shares(*tally[BINS + 1 :].reshape(2, -1))
