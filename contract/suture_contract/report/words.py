"""How metrics, verdicts and reasons are said to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from suture_contract.documents import FEW_PATIENTS, Contributed, Interval, Metric, PartyReport
from suture_contract.rounding import fixed


@dataclass(frozen=True)
class Scale:
    """How one metric is written: its name, and a share as per cent or a bare number."""

    name: str
    unit: Literal["%", ""]
    higher_is_better: bool = True

    def text(self, value: float, decimals: int | None = None) -> str:
        """Return the value with its unit: `95.6 %`, `0.873`."""
        number = self.number(value, decimals)
        return f"{number} %" if self.unit else number

    def number(self, value: float, decimals: int | None = None) -> str:
        """Return the value without its unit."""
        places = (1 if self.unit else 3) if decimals is None else decimals
        return fixed(value, places, percent=bool(self.unit)).replace("-", "−")

    def change(self, value: float) -> str:
        """Return a difference with its sign: `+1.2 points`, `−0.031`."""
        return f"{self.signed(value)} points" if self.unit else self.signed(value)

    def signed(self, value: float) -> str:
        """Return a difference with its sign, without its unit."""
        number = self.number(value)
        return number if number.startswith("−") else f"+{number}"

    def decimals_between(self, step: float) -> int:
        """Return the fewest decimals that tell values `step` apart."""
        shown = 100 * step if self.unit else step
        return next(places for places in range(12) if abs(round(shown, places) - shown) < 1e-9 or places == 11)


_SCALES: dict[Metric, Scale] = {
    "accuracy": Scale("accuracy", "%"),
    "balanced_accuracy": Scale("balanced accuracy", "%"),
    "auroc": Scale("area under the ROC curve", ""),
    "f1": Scale("F1 score", ""),
    "dice": Scale("Dice score", ""),
    "r2": Scale("explained variance (R²)", ""),
    "mae": Scale("mean absolute error", "", higher_is_better=False),
}

METRIC_MEANINGS: dict[Metric, str] = {
    "accuracy": "the share of test samples that are classified correctly",
    "balanced_accuracy": "the share of correctly classified test samples, averaged over the classes",
    "auroc": "how well the model ranks ill above well; 0.5 is chance, 1 is perfect",
    "f1": "how well the labels that were found agree with the true ones; 0 is not at all, 1 is perfect",
    "dice": "the overlap of the predicted and the drawn region; 0 is none, 1 is perfect",
    "r2": "the share of the variation between test samples that is predicted; 1 is perfect",
    "mae": "the mean distance between prediction and truth, in the unit of the target; lower is better",
}

#: What a label's number says; of other metrics, labels have none.
OF_LABELS: dict[Metric, str] = {
    "accuracy": "Share of each label's test samples that is classified correctly",
    "f1": "Share of the test samples with each label where it is found",
    "dice": "Mean Dice score of each label over the test samples that show it",
}

VERDICTS = {"adopt": "Adopt", "care": "Look closely", "reject": "Do not adopt"}
SIGNS = {"adopt": "✓", "care": "!", "reject": "✕"}

REASONS = {
    "declined": "declined to evaluate",
    "no_answer": "did not answer in time",
    "too_few_samples": "has fewer test samples than its own policy asks for",
    "failed": "could not complete the evaluation",
}

#: What stands in a table where a party's numbers would.
SHORT_REASONS = {
    "declined": "declined",
    "no_answer": "no answer",
    "too_few_samples": "suppressed",
    "failed": "failed",
}

UNSTITCHED = {
    "no_points": "fewer than two of the models have places at which they could be stitched",
    "no_match": "no place in one model says what a place in another does",
}


def bracketed(interval: Interval) -> str:
    """Return a value with its interval, as text has it: `0.873 [0.801, 0.922]`."""
    return f"{fixed(interval.value, 3)} [{fixed(interval.low, 3)}, {fixed(interval.high, 3)}]"


def scale_of(metric: Metric) -> Scale:
    """Return how `metric` is written."""
    return _SCALES[metric]


def samples(party_report: PartyReport, word: str = "") -> str:
    """Say on how many test samples, by that `word`, a party measured, and of how many patients if these are fewer."""
    if party_report.patients is None or party_report.patients == party_report.n:
        return f"{party_report.n:,}{word}"
    return f"{party_report.n:,}{word} of {party_report.patients:,} patient{'' if party_report.patients == 1 else 's'}"


def few_patients(party_report: PartyReport) -> int | None:
    """Return the number of a party's patients where they are too few for a verdict; without a count, of samples."""
    patients = party_report.n if party_report.patients is None else party_report.patients
    return patients if patients < FEW_PATIENTS else None


def contributed(contribution: Contributed) -> str:
    """Say what a party gave to the fit, as the rest of a sentence that begins with its name."""
    n, epsilon, delta = contribution.n, contribution.epsilon, contribution.delta
    noise = "without noise" if epsilon is None else f"with noise (epsilon {epsilon:g}, delta {delta:g})"
    samples = f"{n.get('train', 0):,} training and {n.get('validation', 0):,} validation samples"
    return f"contributed sums over {samples} to the fit, {noise}"
