"""The interface of an objective: what is asked of outputs, and how well they do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from suture_contract.documents import Calibration, MeasuredMetric, Metric


class Objective(ABC):
    """Combines members' outputs and compares the result with a dataset's targets.

    `labels` are the ensemble's (None for regression). Targets are what the dataset delivers, in its own labels.
    """

    metric: Metric
    higher_is_better = True
    labels: tuple[str, ...] | None = None

    @abstractmethod
    def combine(self, outputs: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """Return the ensemble's output of `outputs`, one per member in `members`; with labels, probabilities."""

    @abstractmethod
    def loss(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar through which gradients flow."""

    @abstractmethod
    def measure(self, combined: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's score `(N,)`, whose mean is the metric, and a tally `(K,)`; both float64.

        The tally is what there is to add up over samples beside their scores; its sums do not depend on their order.
        """

    def answers(
        self,
        combined: Tensor,
        targets: Tensor,
        metrics: Sequence[MeasuredMetric],
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Return per sample what further `metrics` are computed from, `(N, F)`: the outputs; nothing without any.

        `spacing` are the mm from one position to the next, for distances that are told in mm.
        """
        return (combined if metrics else combined[:, :0]).flatten(1).float()

    def scores(self, combined: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's score `(N,)` float64."""
        return self.measure(combined, targets)[0]

    def calibration(self, tally: Tensor, n: int) -> Calibration | None:
        """Return how far the outputs are to be believed, from the tally of `n` samples; None if it cannot tell."""
        return None

    def classes(self, tally: Tensor) -> dict[int, tuple[int, float]]:
        """Return by label, as its index in `labels`, how many samples have it and how well they do, from 0 to 1."""
        return {}


#: Shares are added up in whole parts of this size: such sums do not depend on their order.
_PART = 2.0**-20


def whole(values: Tensor) -> Tensor:
    """Return values to add up, in whole parts."""
    return (values / _PART).round() * _PART
