"""Whether a party's own numbers can be believed: what is declared of its model's training, and what looks odd."""

from __future__ import annotations

from suture_contract.documents import PartyReport, Training
from suture_contract.report.words import few_patients, scale_of

_DECLARED: dict[Training, str] = {
    "matches": "The owner of {party}'s own model declares that training used the train split, and the digest matches: "
    "these samples took no part in it.",
    "differs": "The owner of {party}'s own model declares a train split whose digest differs from the site's: some of "
    "these samples may have been trained on.",
    "no_digest": "The owner of {party}'s own model declares that training used the train split; no digest shows that "
    "it was the site's.",
    "all": "The owner of {party}'s own model declares that training used all data, these samples too: at home, its "
    "value is not that of a test.",
    "undeclared": "Whether training of {party}'s own model used some of these samples is not declared.",
}
#: Between train and test, a difference of this much of a metric that runs from 0 to 1 is told.
_GAP = 0.1
_SHARES = frozenset({"accuracy", "balanced_accuracy", "auroc", "f1", "dice"})


def training_words(party_report: PartyReport, party: str) -> str:
    """Say what is declared of the training of a party's own model, or what it means that it has none."""
    if "own" not in party_report.rows:
        return (
            f"None of the models is {party}'s: it had a say in the choice alone, and these numbers show how they do at "
            "a hospital that trained none of them."
        )
    return declared(party_report.training, party)


def declared(training: Training | None, party: str) -> str:
    """Say what is declared of the training of a party's own model."""
    return _DECLARED[training or "undeclared"].format(party=party)


def warnings(party_report: PartyReport, party: str) -> list[str]:
    """Say what makes a party's numbers say less than they seem to.

    Few patients, accuracy that does not show whether labels are told apart, and what looks as if the own model had seen
    test samples or learnt by heart.
    """
    own, few = party_report.rows.get("own"), few_patients(party_report)
    sentences = []
    if few is not None:
        sentences.append(
            f"{party}'s test samples are of {few} patient{'' if few == 1 else 's'}, too few to tell how well a model "
            "does on others there. More patients would; more samples of the same ones do not."
        )
    if (apart := _not_told_apart(party_report, party)) is not None:
        sentences.append(apart)
    if own is None or party_report.metric not in _SHARES | {"mae", "r2"}:
        return sentences
    scale = scale_of(party_report.metric)
    perfect = own.value <= 0 if party_report.metric == "mae" else own.value >= 1
    if perfect:
        sentences.append(
            f"{party}'s own model makes no error on {party_report.n:,} test samples. Check that training used none of "
            "them: `suture data split` gives the site's own splits."
        )
    if party_report.train is None or party_report.metric not in _SHARES:
        return sentences
    gap = party_report.train.value - own.value
    values = f"{scale.text(party_report.train.value)} on training samples, {scale.text(own.value)} on test samples"
    if gap > _GAP and party_report.train.low > own.high:
        sentences.append(f"{party}'s own model reaches {values}: it may have learnt its training samples by heart.")
    if gap < -_GAP and party_report.train.high < own.low:
        sentences.append(
            f"{party}'s own model reaches {values}. A model does not do better on what it never saw: check which "
            "samples it was trained on."
        )
    return sentences


def _not_told_apart(party_report: PartyReport, party: str) -> str | None:
    """Say that the chosen model calls every sample alike there, or that nobody can tell; None where neither is so."""
    labels = party_report.classes
    if party_report.metric != "accuracy" or party_report.privacy is not None:
        return None
    if not labels:
        return (
            f"{party} tells no numbers by label, since one of them has too few patients. So its accuracy does not show "
            "whether a model tells labels apart: where one is frequent, calling everything so is right as often."
        )
    right = {label.label: label.rows.get("chosen") for label in labels}
    all_of_them = sum(label.n for label in labels) == party_report.n
    if (
        all_of_them
        and len(right) > 1
        and sorted(value or 0.0 for value in right.values()) == [0.0] * (len(right) - 1) + [1.0]
    ):
        always = next(label for label, value in right.items() if value)
        return f"The chosen model calls all of {party}'s samples {always}: it does not tell labels apart there."
    return None
