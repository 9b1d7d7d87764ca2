"""The account of one job: how much noise each question about patients needs, so that all together keep one promise.

All questions are sums with Gaussian noise. What Gaussian questions tell adds up exactly: questions of sensitivity `s_i`
and noise `sigma_i` together tell as much as a single one with `mu^2 = sum((s_i / sigma_i)^2)` (Dong, Roth and Su,
"Gaussian Differential Privacy", 2022), and the analytic Gaussian mechanism says which `mu` an (epsilon, delta) allows.
"""

from __future__ import annotations

import math

from torch import Tensor

from suture_contract.privacy import Privacy
from suture_stitching.privacy.noise import normal
from suture_stitching.running.checkpoint import Checkpoint


class Account:
    """What may still be asked. Answers are kept in `checkpoint`, so that no question draws its noise twice.

    `share` is the part of the account of `privacy` that may be spent here; the rest is for other steps of the job on
    the same patients, such as their evaluation.
    """

    def __init__(self, privacy: Privacy, checkpoint: Checkpoint, share: float = 1.0) -> None:
        self._mu = 1 / noise_of(privacy.epsilon, privacy.delta, 1.0)
        self._left, self._checkpoint = share, checkpoint

    def deviation(self, share: float, sensitivity: float) -> float:
        """Return the deviation of the noise on a question of this sensitivity that spends this part of the account."""
        return sensitivity / (self._mu * math.sqrt(share))

    def ask(self, name: str, answer: Tensor, share: float, sensitivity: float) -> Tensor:
        """Return `answer` (float64, any shape) with noise; `sensitivity` is by how much a patient moves it at most.

        It is the Euclidean norm of the change of all of `answer` together.
        """
        if share > self._left * (1 + 1e-9):
            raise ValueError(f"{name} would spend more than the account holds")
        self._left -= share
        kept = self._checkpoint.load(f"private-{name}")
        if kept is not None and kept.tensors["answer"].shape == answer.shape:
            return kept.tensors["answer"]
        noisy = answer.double().cpu() + self.deviation(share, sensitivity) * normal(answer.shape)
        self._checkpoint.save(f"private-{name}", None, {"answer": noisy})
        return noisy


def noise_of(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the standard deviation of Gaussian noise that makes a query of this sensitivity private.

    By the analytic Gaussian mechanism (Balle and Wang, "Improving the Gaussian mechanism for differential privacy",
    2018), which holds for every epsilon.
    """

    def leaks(sigma: float) -> float:
        a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        return _normal(a - b) - math.exp(epsilon) * _normal(-a - b)

    low, high = 0.0, sensitivity
    while leaks(high) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle == 0 or leaks(middle) > delta else (low, middle)
    return high


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
