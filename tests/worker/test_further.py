"""Further metrics, calibration curves and subgroups leave as asked for, as named, and of enough patients."""

from __future__ import annotations

import copy
import json

import pytest
from tests.worker import conftest as make

from suture_contract.documents import Evaluation, SplitScores
from suture_contract.errors import SutureError
from suture_contract.measures import CalibrationBin
from suture_worker.egress.described import outline
from suture_worker.egress.release_check import ReleaseCheck
from suture_worker.egress.suppression import joined_bins, suppressed
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask

ASKED = ["auroc", "brier", "calibration_curve"]
NAMED = {"eyes": {"sex": ("female", "male"), "age": ("below 50", "50 or more")}}
VALUE = {"value": 0.512345678, "low": 0.4, "high": 0.6}
IDS = [f"c0{index}" for index in range(4)]


def subgroup(column="sex", value="female", n=20, **further):
    each = dict.fromkeys(IDS, VALUE)
    metrics = {"auroc": each, "brier": each}
    return {"column": column, "value": value, "n": n, "scores": each, "metrics": metrics, **further}


def curve(counts):
    return [
        {"upto": round((place + 1) / 10, 1), "n": n, "predicted": place / 10, "events": min(n, 3)}
        for place, n in enumerate(counts)
        if n
    ]


def evaluation(classes=(20, 20), counts=(20, 0, 0, 0, 0, 0, 0, 0, 0, 20), subgroups=(), **changes):
    document = copy.deepcopy(make.evaluation())
    document["splits"]["test"] |= {
        "classes": {str(place): {"n": n, "scores": dict.fromkeys(IDS, 0.5)} for place, n in enumerate(classes)},
        "metrics": {"auroc": dict.fromkeys(IDS, VALUE), "brier": dict.fromkeys(IDS, VALUE)},
        "curves": dict.fromkeys(IDS, curve(counts)),
        "subgroups": list(subgroups),
        **changes,
    }
    return document


@pytest.fixture
def released(tmp_path, write_json):
    """Return the test split as it leaves, or raise what the gate says."""

    def release(document, asked=ASKED, terms=None, **limits):
        task = make.leased("evaluate", own=0)
        task["spec"]["metrics"] = list(asked)
        parsed = LeasedTask.parse(task)
        folder = TaskFolder(tmp_path, parsed.id)
        folder.create(Assignment(task=parsed, dataset="eyes"))
        folder.note_terms(terms or Terms(min_samples=11))
        folder.results.mkdir(parents=True, exist_ok=True)
        write_json(folder.candidates / "candidates.json", make.candidates(task))
        write_json(folder.results / "document.json", document)
        gate = ReleaseCheck(min_samples=11, **{"min_per_class": 11, "decimals": 4, "subgroups": NAMED, **limits})
        content = json.loads(gate.check(parsed, folder)[-1].content)["document"]
        return Evaluation.model_validate(content).splits["test"]

    return release


def test_what_was_asked_for_leaves_rounded(released):
    test = released(evaluation(subgroups=[subgroup(), subgroup(value="male")]))
    assert test.metrics["auroc"]["c00"].value == 0.5123
    assert [part.n for part in test.curves["c00"]] == [20, 20]
    assert [part.value for part in test.subgroups] == ["female", "male"]
    assert test.subgroups[0].metrics["brier"]["c03"].value == 0.5123


@pytest.mark.parametrize(
    "document",
    [
        evaluation(metrics={"f1": dict.fromkeys(IDS, VALUE)}),
        evaluation(metrics={"auroc": dict.fromkeys(IDS, VALUE | {"high": 1.3})}),
        evaluation(metrics={"auroc": {"c07": VALUE}}),
        evaluation(metrics={"patient 17": dict.fromkeys(IDS, VALUE)}),
        evaluation(counts=(20, 0, 0, 0, 0, 0, 0, 0, 0, 19)),
        evaluation(curves={"c00": [{**part, "upto": 0.123} for part in curve([40])]}),
        evaluation(curves={"c00": curve([20, 20])[::-1]}),
        evaluation(subgroups=[subgroup(column="name")]),
        evaluation(subgroups=[subgroup(value="Mr Smith")]),
        evaluation(subgroups=[subgroup(), subgroup()]),
        evaluation(subgroups=[subgroup(n=30), subgroup(value="male", n=30)]),
        evaluation(subgroups=[subgroup(classes={})]),
    ],
)
def test_anything_else_does_not_leave(released, document):
    with pytest.raises(SutureError) as error:
        released(document)
    assert error.value.code == "outbox.refused"


@pytest.mark.parametrize("split", ["validation"])
def test_further_metrics_are_of_the_test_split(released, split):
    document = evaluation()
    document["splits"][split]["metrics"] = document["splits"]["test"]["metrics"]
    with pytest.raises(SutureError, match="not asked for"):
        released(document)


def test_a_distance_leaves_by_the_name_that_says_its_unit(released):
    far = {"value": 7.123456, "low": 2.0, "high": 30.0}
    for told in ("hd95", "hd95_mm"):
        document = evaluation(metrics={told: dict.fromkeys(IDS, far)}, curves={})
        assert released(document, asked=["hd95"]).metrics[told]["c00"].value == 7.1235
        with pytest.raises(SutureError, match="not asked for"):
            released(document, asked=["surface_dice"])


def test_nobody_who_did_not_ask_is_told(released):
    with pytest.raises(SutureError, match="not asked for"):
        released(evaluation(), asked=["brier"])


def test_nothing_of_it_has_noise(released):
    terms = Terms(min_samples=11, epsilon=1.0, delta=1e-5)
    for changes in ({"curves": {}, "metrics": {}, "subgroups": [subgroup()]}, {"metrics": {}}, {"curves": {}}):
        document = evaluation(**changes)
        document["splits"]["test"]["classes"] = {}
        document["privacy"] = {"epsilon": 1.0, "delta": 1e-5}
        with pytest.raises(SutureError, match="no noise"):
            released(document, terms=terms)


def test_where_a_label_is_hidden_nothing_tells_of_labels(released):
    """Sensitivity would be the row of the label that is left out."""
    test = released(evaluation(classes=(30, 10)))
    assert test.classes == {}
    assert set(test.metrics) == {"brier"}
    assert test.curves == {}
    assert set(released(evaluation(classes=(30, 10)), min_per_class=10).metrics) == {"auroc", "brier"}


def test_bins_of_few_patients_are_joined(released):
    test = released(evaluation(counts=(5, 5, 5, 5, 0, 0, 0, 0, 8, 12)))
    assert [(part.upto, part.n) for part in test.curves["c00"]] == [(0.3, 15), (0.9, 13), (1.0, 12)]
    assert test.curves["c00"][0].predicted == 0.1
    assert released(evaluation(counts=(35, 0, 0, 0, 0, 0, 0, 0, 0, 5))).curves == {}


def test_bins_count_patients_and_not_their_samples():
    bins = [
        CalibrationBin(upto=0.5, n=100, patients=3, predicted=0.2, events=10),
        CalibrationBin(upto=1.0, n=100, patients=20, predicted=0.8, events=70),
    ]
    (joined,) = joined_bins(bins, 11)
    assert (joined.n, joined.patients, joined.predicted, joined.events) == (200, 23, pytest.approx(0.5), 80)


@pytest.mark.parametrize(
    ("sizes", "left"),
    [((20, 20), ["female", "male"]), ((30, 10), []), ((29,), ["female"]), ((30,), []), ((20, 9), ["female"])],
)
def test_small_subgroups_and_what_gives_them_away_do_not_leave(released, sizes, left):
    parts = [subgroup(value=value, n=n) for value, n in zip(("female", "male"), sizes, strict=False)]
    assert [part.value for part in released(evaluation(subgroups=parts)).subgroups] == left


def test_columns_are_divided_each_on_its_own(released):
    parts = [subgroup(n=35), subgroup(value="male", n=5), subgroup("age", "below 50"), subgroup("age", "50 or more")]
    left = released(evaluation(subgroups=parts)).subgroups
    assert [part.column for part in left] == ["age", "age"]


def test_without_classes_no_label_is_told_of():
    scores = SplitScores.model_validate(evaluation()["splits"]["test"] | {"classes": {}})
    assert set(suppressed(scores, 11, "classification").metrics) == {"brier"}


def test_who_approves_reads_of_all_of_it():
    places = {" > ".join(place): fields for place, fields in outline(Evaluation)}
    assert {"upto", "n", "patients", "predicted", "events"} <= set(
        next(fields for place, fields in places.items() if place.endswith("curves"))
    )
    assert any("subgroups" in place and place.endswith("metrics") for place in places)
