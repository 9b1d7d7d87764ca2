"""What is told of classes: whatever can be worked out from it by subtraction is about enough samples."""

from __future__ import annotations

import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.worker import conftest as make
from tests.worker.test_smuggling import evaluate

from suture_contract.documents import SplitScores
from suture_worker.egress.suppression import without_small_classes


def split(counts, unseen=0, patients=None, everyone=None):
    classes = {str(i): {"n": n, "scores": {"c00": 0.5}} for i, n in enumerate(counts) if n}
    for i, have in enumerate(patients or ()):
        classes[str(i)]["patients"] = have
    return SplitScores.model_validate(
        {
            "n": sum(counts) + unseen,
            "patients": everyone,
            "scores": {"c00": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "classes": classes,
        }
    )


def told(counts, minimum=11):
    return {
        int(label): one.n
        for label, one in without_small_classes(split(counts), minimum, exclusive=True).classes.items()
    }


def test_classes_that_are_large_enough_are_all_told():
    assert told([40, 11, 30]) == {0: 40, 1: 11, 2: 30}


def test_one_small_class_takes_the_next_one_with_it():
    assert told([40, 5, 30, 12]) == {0: 40, 2: 30}


def test_small_classes_that_are_still_few_together_take_another_one_with_them():
    assert told([40, 3, 30, 4]) == {0: 40}
    assert told([40, 6, 30, 5]) == {0: 40, 2: 30}


def test_of_two_classes_both_or_none_are_told():
    assert told([40, 5]) == {}
    assert told([40, 12]) == {0: 40, 1: 12}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 20), st.integers(2, 15))
def test_nothing_about_few_samples_follows_from_what_is_told(counts, unseen, minimum):
    scores = split(counts, unseen)
    left = without_small_classes(scores, minimum, exclusive=True)
    shown = [one.n for one in left.classes.values()]
    assert all(n >= minimum for n in shown)
    hidden = [one.n for label, one in scores.classes.items() if label not in left.classes] + [unseen] * (unseen > 0)
    if shown and hidden:
        assert len(hidden) >= 2
        assert scores.n - sum(shown) >= minimum


def test_a_label_that_all_but_a_few_have_is_left_out():
    # 100 samples, of which 95 show one label and 60 another: the score of the 5 others would follow from the 95.
    scores = split([95, 60, 40], unseen=-95)
    assert scores.n == 100
    assert without_small_classes(scores, 11, exclusive=False).classes.keys() == {"1", "2"}
    assert without_small_classes(scores, 5, exclusive=False).classes.keys() == {"0", "1", "2"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(40, 60), st.integers(2, 15))
def test_of_labels_that_overlap_neither_side_is_small(counts, n, minimum):
    scores = split(counts, n - sum(counts))
    for one in without_small_classes(scores, minimum, exclusive=False).classes.values():
        assert one.n >= minimum
        assert scores.n == one.n or scores.n - one.n >= minimum


def test_a_class_of_many_samples_of_few_patients_is_small():
    scores = split([400, 60, 300, 120], patients=[40, 5, 30, 12], everyone=87)
    assert without_small_classes(scores, 11, exclusive=True).classes.keys() == {"0", "2"}
    assert without_small_classes(scores, 5, exclusive=True).classes.keys() == {"0", "1", "2", "3"}


def test_a_patient_who_has_several_classes_is_not_counted_twice():
    # Both small classes may be of the same six patients: a third one is left out, though they are eleven together.
    scores = split([400, 60, 300, 50], patients=[40, 6, 40, 5], everyone=40)
    assert without_small_classes(scores, 11, exclusive=True).classes.keys() == {"0"}


def test_a_label_that_all_but_a_few_patients_have_is_left_out():
    scores = split([950, 600], unseen=-550, patients=[95, 60], everyone=100)
    assert without_small_classes(scores, 11, exclusive=False).classes.keys() == {"1"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=6), st.sets(st.integers(0, 30)), st.integers(2, 15))
def test_what_is_left_out_is_of_enough_patients_or_everything_is(classes, unlabelled, minimum):
    # Each patient of a class has three samples of it.
    counts = [3 * len(own) for own in classes if own]
    patients = [len(own) for own in classes if own]
    scores = split(counts, 3 * len(unlabelled), patients, len(set().union(*classes, unlabelled)))
    left = without_small_classes(scores, minimum, exclusive=True)
    assert all(one.patients >= minimum for one in left.classes.values())
    kept = [own for own in classes if own]
    hidden = [own for label, own in enumerate(kept) if str(label) not in left.classes] + [unlabelled]
    if left.classes and any(hidden):
        assert len(set().union(*hidden)) >= minimum


def document(counts, value=0.8):
    found = copy.deepcopy(make.evaluation(n=sum(counts)))
    for scores in found["splits"].values():
        scores["classes"] = {
            str(label): {"n": n, "scores": dict.fromkeys(scores["scores"], value)} for label, n in enumerate(counts)
        }
    return found


def test_the_gate_lets_no_small_class_out():
    left = json.loads(evaluate(document([33, 7]))[0])["document"]["splits"]["test"]
    assert left["classes"] == {}
    assert left["n"] == 40


def test_the_gate_counts_patients():
    few, enough = document([33, 25]), document([33, 25])
    for content, of in ((few, 10), (enough, 11)):
        for scores in content["splits"].values():
            scores["patients"] = 40
            for one in scores["classes"].values():
                one["patients"] = of
    assert json.loads(evaluate(few)[0])["document"]["splits"]["test"]["classes"] == {}
    assert len(json.loads(evaluate(enough)[0])["document"]["splits"]["test"]["classes"]) == 2
    for scores in few["splits"].values():
        scores["classes"], scores["patients"] = {}, 10
    assert evaluate(few) is None


def test_the_gate_rounds_what_it_tells_of_classes():
    left = json.loads(evaluate(document([25, 15], value=0.123456789))[0])["document"]["splits"]["test"]
    assert left["classes"]["1"] == {"n": 15, "scores": dict.fromkeys(("c00", "c01", "c02", "c03"), 0.1235)}


def test_labels_that_the_job_does_not_have_are_refused():
    wrong = document([25, 15])
    for scores in wrong["splits"].values():
        scores["classes"]["7"] = scores["classes"].pop("1")
    assert evaluate(wrong) is None


def test_classes_that_do_not_measure_every_candidate_are_refused():
    wrong = document([25, 15])
    del wrong["splits"]["test"]["classes"]["1"]["scores"]["c02"]
    assert evaluate(wrong) is None


def test_calibration_leaves_rounded():
    found = make.evaluation()
    score = dict(found["splits"]["test"]["scores"]["c00"], calibration={"ece": 0.0212345, "brier": 0.3987654})
    found["splits"]["test"]["scores"] = {**found["splits"]["test"]["scores"], "c00": score}
    left = json.loads(evaluate(found)[0])["document"]["splits"]["test"]["scores"]
    assert left["c00"]["calibration"] == {"ece": 0.0212, "brier": 0.3988}
    assert "calibration" not in left["c01"]
