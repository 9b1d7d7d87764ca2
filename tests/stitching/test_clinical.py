"""Metrics that clinicians read: the values of a reference, intervals over patients, and what a report says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from tests.stitching.networks import LABELS, SHAPE, UNet, dataset, deep, images, masks, member, plain

from suture_contract.errors import SutureError
from suture_contract.fit_options import FitOptions
from suture_contract.measures import CLINICAL, Interval
from suture_contract.privacy import Privacy
from suture_contract.report.build import build
from suture_contract.report.clinical import clinical_words
from suture_contract.report.html import to_html
from suture_stitching.data import ArrayDataset
from suture_stitching.data.dataset import NamedSubgroup
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.clinical import (
    calibration_curve,
    exclusive_answers,
    label_metrics,
    several_answers,
)
from suture_stitching.evaluation.evaluate import evaluate, evaluate_share
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import fit
from suture_stitching.objectives.distances import hd95, surface_dice
from suture_stitching.running.shards import Share

OPTIONS = FitOptions(refine=False)
OF_CLASSES = CLINICAL["classification"]


def drawn(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[truth]
    exps = np.exp(logits)
    return exps / exps.sum(1, keepdims=True), truth


def measured(probabilities: np.ndarray, truth: np.ndarray, patients: np.ndarray | None = None) -> dict[str, Interval]:
    answers = exclusive_answers(torch.from_numpy(probabilities), torch.from_numpy(truth))
    whose = np.arange(len(truth)) if patients is None else patients
    every = label_metrics([answers], OF_CLASSES, whose)
    return {name: value for name, (value,) in every.items() if value is not None}


def report_to_north(fitted, evaluation):
    """The report where north asked and evaluated alone."""
    evaluations = {"north": evaluation}
    choice = choose(fitted.candidates, evaluations, requester="north")
    parties = ["north", "south"]
    return build(fitted.candidates, evaluations, choice, requester="north", parties_of_members=parties, job="job")


def test_two_labels_are_measured_as_a_reference_measures_them():
    probabilities, truth = drawn(300, 2)
    said, positive = probabilities.argmax(1), probabilities[:, 1]
    values = {name: interval.value for name, interval in measured(probabilities, truth).items()}
    odds = np.log(positive / (1 - positive)).reshape(-1, 1)
    slope = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-10).fit(odds, truth).coef_[0, 0]
    expected = {
        "auroc": sklearn.metrics.roc_auc_score(truth, positive),
        "auprc": sklearn.metrics.average_precision_score(truth, positive),
        "sensitivity": sklearn.metrics.recall_score(truth, said),
        "specificity": sklearn.metrics.recall_score(truth, said, pos_label=0),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(truth, said),
        "f1": sklearn.metrics.f1_score(truth, said),
        "brier": float(np.square(probabilities - np.eye(2)[truth]).sum(1).mean()),
        "calibration_slope": float(slope),
    }
    assert values == pytest.approx(expected, abs=1e-5)


def test_more_labels_are_each_measured_against_the_rest():
    probabilities, truth = drawn(400, 4)
    said, several = probabilities.argmax(1), np.eye(4)[truth]
    values = {name: interval.value for name, interval in measured(probabilities, truth).items()}
    auroc = np.mean([sklearn.metrics.roc_auc_score(several[:, k], probabilities[:, k]) for k in range(4)])
    assert values["auroc"] == pytest.approx(auroc, abs=1e-5)
    assert values["auprc"] == pytest.approx(sklearn.metrics.average_precision_score(several, probabilities), abs=1e-5)
    assert values["sensitivity"] == pytest.approx(sklearn.metrics.recall_score(truth, said, average="macro"), abs=1e-6)
    assert values["balanced_accuracy"] == values["sensitivity"]
    assert values["f1"] == pytest.approx(sklearn.metrics.f1_score(truth, said, average="macro"), abs=1e-6)


def test_several_labels_at_once_are_each_measured():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (200, 3))
    probabilities = np.clip(rng.uniform(size=(200, 3)) * 0.7 + 0.3 * truth, 0, 1)
    answers = several_answers(torch.from_numpy(probabilities), torch.from_numpy(truth), 0.5)
    values = label_metrics([answers], CLINICAL["multilabel"], np.arange(200))
    assert set(values) == set(CLINICAL["multilabel"])
    recall = sklearn.metrics.recall_score(truth, probabilities >= 0.5, average="macro")
    assert values["sensitivity"][0].value == pytest.approx(recall, abs=1e-6)
    assert values["auroc"][0].value == pytest.approx(sklearn.metrics.roc_auc_score(truth, probabilities), abs=1e-5)


def test_intervals_are_as_wide_as_patients_differ():
    """Ten samples of each patient say hardly more than one does, where they are all alike."""
    probabilities, truth = drawn(40, 2)
    once = measured(probabilities, truth)
    tenfold = np.repeat(np.arange(40), 10)
    alike = measured(probabilities[tenfold], truth[tenfold], tenfold)
    taken_apart = measured(probabilities[tenfold], truth[tenfold])
    for name in ("auroc", "sensitivity", "brier"):
        width, grouped = (one[name].high - one[name].low for one in (once, alike))
        assert grouped == pytest.approx(width, rel=0.3)
        assert taken_apart[name].high - taken_apart[name].low < 0.5 * grouped


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    probabilities, truth = drawn(200_000, 2, seed=7)
    true = sklearn.metrics.roc_auc_score(truth, probabilities[:, 1])
    held = 0
    for seed in range(60):
        probabilities, truth = drawn(120, 2, seed)
        answers = exclusive_answers(torch.from_numpy(probabilities), torch.from_numpy(truth))
        (interval,) = label_metrics([answers], ("auroc",), np.arange(120))["auroc"]
        held += interval.low <= true <= interval.high
    assert held >= 51


def test_what_samples_do_not_define_is_left_out():
    probabilities, _ = drawn(30, 2)
    assert set(measured(probabilities, np.ones(30, dtype=np.int64))) == {"brier"}
    told_apart = np.array([[0.9, 0.1], [0.1, 0.9]] * 15)
    assert "calibration_slope" not in measured(told_apart, np.array([0, 1] * 15))
    assert measured(probabilities, np.arange(30) % 2, np.zeros(30, dtype=np.int64)) == {}


def test_a_calibration_curve_counts_each_sample_and_each_patient_once():
    probabilities, truth = drawn(200, 2)
    patients = np.repeat(np.arange(50), 4)
    curve = calibration_curve(
        exclusive_answers(torch.from_numpy(probabilities), torch.from_numpy(truth)), patients, grouped=True
    )
    assert sum(part.n for part in curve) == 200
    assert sum(part.patients for part in curve) == 50
    assert sum(part.events for part in curve) == truth.sum()
    place = np.minimum((probabilities[:, 1] * 10).astype(int), 9)
    third = next(part for part in curve if part.upto == pytest.approx(0.3))
    assert third.n == (place == 2).sum()
    assert third.predicted == pytest.approx(probabilities[place == 2, 1].mean())


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    named = dataset(n=240)
    sex = np.arange(240) % 2 == 0
    named.subgroups = (NamedSubgroup("sex", "female", sex), NamedSubgroup("sex", "male", ~sex))
    return named


@pytest.fixture(scope="module")
def fitted(pair: list[Member], data: ArrayDataset) -> FitResult:
    return fit(pair, data, own=0, options=OPTIONS)


def test_an_evaluation_measures_every_candidate_and_the_report_its_rows(pair, data, fitted):
    asked = ("auroc", "sensitivity", "calibration_curve")
    evaluation = evaluate(pair, fitted, data, own=0, metrics=asked)
    test = evaluation.splits["test"]
    assert set(test.metrics) == {"auroc", "sensitivity"}
    assert test.metrics["auroc"].keys() == test.scores.keys() == test.curves.keys()
    assert not evaluation.splits["validation"].metrics
    x, y = next(data.batches("test", 1000))
    ensemble = compose(pair, fitted, "c02")(x).double().numpy()
    auroc = np.mean([sklearn.metrics.roc_auc_score(y == k, ensemble[:, k]) for k in range(3)])
    assert test.metrics["auroc"]["c02"].value == pytest.approx(auroc, abs=1e-5)
    north = report_to_north(fitted, evaluation).parties["north"]
    assert north.metrics["auroc"]["ensemble"].value == test.metrics["auroc"]["c02"].value
    assert north.curves["own"] == test.curves["c00"]
    female, male = north.subgroups
    assert (female.column, female.value, female.n + male.n) == ("sex", "female", north.n)
    value = (female.n * female.rows["own"].value + male.n * male.rows["own"].value) / north.n
    assert value == pytest.approx(north.rows["own"].value)
    assert female.metrics["auroc"]["own"].low <= female.metrics["auroc"]["own"].value
    # About 12 of her 36 patients have each of the labels.
    few = evaluate(pair, fitted, data, own=0, metrics=("auroc", "brier"), fewest=20).splits["test"].subgroups
    assert [set(part.metrics) for part in few] == [{"brier"}, {"brier"}]


def test_what_was_asked_for_and_is_not_told_is_said(pair, data, fitted):
    asked = ("auroc", "brier", "calibration_curve")
    evaluation = evaluate(pair, fitted, data, own=0, metrics=asked)
    # As a site leaves them out where a label has few patients.
    test = evaluation.splits["test"]
    hidden = test.model_copy(update={"metrics": {"brier": test.metrics["brier"]}, "curves": {}})
    private = evaluate(pair, fitted, data, own=0, metrics=asked, privacy=Privacy(epsilon=8.0, delta=1e-5))
    for told, withheld in (
        (evaluation, ()),
        (
            evaluation.model_copy(update={"splits": {**evaluation.splits, "test": hidden}}),
            ("auroc", "calibration_curve"),
        ),
        (private, asked),
    ):
        report = report_to_north(fitted, told)
        north = report.parties["north"]
        assert north.withheld == withheld
        words = " ".join(clinical_words(north, "north"))
        assert ("north does not tell" in words) == bool(withheld)
        assert "Brier score" in words
        page = to_html(report)
        assert ("Asked for, and not told" in page) == bool(withheld)


def test_shares_and_a_killed_evaluation_come_to_the_same(pair, data, fitted, tmp_path: Path):
    for index in range(2):
        evaluate_share(pair, fitted, data, Share(index, 2), checkpoint=tmp_path, metrics=("auroc",))
    shared = evaluate(pair, fitted, data, own=0, metrics=("auroc",), checkpoint=tmp_path)
    assert shared == evaluate(pair, fitted, data, own=0, metrics=("auroc",))
    assert evaluate(pair, fitted, data, own=0, checkpoint=tmp_path).splits["test"].metrics == {}


def test_noise_lets_nothing_else_out(pair, data, fitted):
    private = evaluate(pair, fitted, data, own=0, metrics=("auroc",), privacy=Privacy(epsilon=8.0, delta=1e-5))
    test = private.splits["test"]
    assert (test.metrics, test.curves, test.subgroups) == ({}, {}, ())


def test_a_metric_of_another_task_is_refused(pair, data, fitted):
    with pytest.raises(SutureError, match="hd95 is no metric of a classification") as error:
        evaluate(pair, fitted, data, metrics=("hd95",))
    assert error.value.code == "job.options"


def test_distances_are_those_of_the_outlines():
    said, shown = torch.zeros(3, 1, 16, 16), torch.zeros(3, 1, 16, 16)
    said[0, 0, 4:8, 4:8] = 1
    shown[0, 0, 4:8, 7:11] = 1
    shown[1, 0, 4:8, 4:8] = 1
    assert hd95(said, shown).tolist() == pytest.approx([3.0, math.hypot(16, 16), 0.0])
    in_mm = hd95(said, shown, (2.0, 0.5)).tolist()
    assert in_mm == pytest.approx([1.5, math.hypot(32, 8), 0.0])
    agreeing = surface_dice(said, shown).tolist()
    assert 0 < agreeing[0] < 1
    assert agreeing[1:] == [0.0, 1.0]


def test_segmentations_are_measured_by_distances(tmp_path):
    members = [
        member(UNet(), tmp_path, name, task="segmentation", seed=seed)
        for seed, name in enumerate(("north/net", "south/net"))
    ]
    drawn_masks = masks(n=30)
    fitted = fit(members, drawn_masks, own=0, options=OPTIONS)
    test = evaluate(members, fitted, drawn_masks, own=0, metrics=CLINICAL["segmentation"]).splits["test"]
    x, y = next(drawn_masks.batches("test", 1000))
    said = torch.nn.functional.one_hot(members[0].model(x).argmax(1), 3).movedim(-1, 1)[:, 1:]
    shown = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)[:, 1:]
    assert test.metrics["hd95"]["c00"].value == pytest.approx(float(hd95(said, shown).mean()))
    assert test.metrics["surface_dice"]["c00"].value == pytest.approx(float(surface_dice(said, shown).mean()))

    # Where positions have a known distance, it is told in mm, by a name that says so.
    drawn_masks.spacing = (2.0, 0.5)
    in_mm = evaluate(members, fitted, drawn_masks, own=0, metrics=CLINICAL["segmentation"]).splits["test"].metrics
    assert in_mm.keys() == {"hd95_mm", "surface_dice"}
    assert in_mm["hd95_mm"]["c00"].value == pytest.approx(float(hd95(said, shown, (2.0, 0.5)).mean()))


def test_regressions_are_measured_by_concordance(tmp_path):
    members = [
        member(build(1), tmp_path, name, task="regression", labels=None, seed=seed)
        for seed, (name, build) in enumerate((("north/net", plain), ("south/net", deep)))
    ]
    x, _ = images(90)
    data = ArrayDataset(x, x.mean((1, 2, 3))[:, None], task="regression")
    fitted = fit(members, data, own=0, options=OPTIONS)
    test = evaluate(members, fitted, data, own=0, metrics=("concordance",)).splits["test"]
    inputs, targets = next(data.batches("test", 1000))
    said, true = members[0].model(inputs).detach().numpy().ravel(), targets.numpy().ravel()
    covariance = np.cov(said, true, bias=True)
    lin = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (said.mean() - true.mean()) ** 2)
    assert test.metrics["concordance"]["c00"].value == pytest.approx(lin, abs=0.02)
    assert x.shape[1:] == SHAPE
    assert data.labels != LABELS
