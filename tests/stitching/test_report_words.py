"""What a report says: of candidates, gains, what to do, and what to be wary of."""

import re

import pytest
from tests.stitching.reports import (
    CANDIDATES,
    GATE,
    NORTH,
    OPEN_GATE,
    ROUTED,
    SOUTH,
    Decision,
    Page,
    evaluation,
    report,
    routed_report,
)

from suture_contract.documents import (
    Candidate,
    ClassScores,
    Gate,
    Interval,
    TrainScore,
)
from suture_contract.model.metadata import Trusted
from suture_contract.privacy import Privacy
from suture_contract.report import build
from suture_contract.report.assumed import REPEATED, assumed
from suture_contract.report.build import describe, in_words
from suture_contract.report.gains import advice, decision, headline, remarks, sentence
from suture_contract.report.html import to_html
from suture_contract.report.trust import training_words, warnings


def test_a_gated_candidate_says_so():
    gate = Gate(points={"0": "n1", "1": "n2"}, weight="g.weight", bias="g.bias", near=1.0, far=1.25)
    plain = CANDIDATES.candidates[4]
    gated = plain.model_copy(update={"gate": gate})
    assert describe(gated, ["a", "b"]) == f"{describe(plain, ['a', 'b'])}, familiar samples only (to 1.25)"


PRIOR = (0.25,) * 4
CORRECTED = ROUTED.model_copy(
    update={
        "candidates": (
            *ROUTED.candidates,
            Candidate(id="c07", kind="corrected", members=(0, 1), site_prior=PRIOR),
            ROUTED.candidates[4].model_copy(update={"id": "c08", "site_prior": PRIOR}),
        )
    }
)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("c07", "the average of the two models, with each hospital's own shares of labels"),
        ("c08", ", with each hospital's own shares of labels"),
    ],
)
def test_a_stitch_is_not_credited_with_what_shares_of_labels_alone_give(chosen, words):
    values = [0.98, 0.49, 0.82, 0.9, 0.95, 0.97, 0.96, 0.99, 0.98]
    measured = {
        "north": evaluation(values, own=0, validation=[0.5] * 9),
        "south": evaluation(values[::-1], own=1, validation=[0.5] * 9),
    }
    found = build(
        CORRECTED, measured, Decision(chosen), requester="north", parties_of_members=["north", "south"], job="job_1"
    )
    assert found.parties["north"].rows["corrected"].value == 0.99
    assert headline(found).endswith(words)
    labels = [one.label for one in found.candidates]
    assert len(set(labels)) == len(labels)
    if chosen == "c08":
        assert any("Averaging with each site's own shares of labels" in one for one in remarks(found, "north"))
    assert "own shares of labels" in Page(to_html(found)).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "the two models joined at their last layer"),
        ({"gate": OPEN_GATE}, "the two models joined at their last layer, on familiar samples"),
        ({"gate": GATE}, "the two models joined at their last layer, on familiar samples; south/digits for the rest"),
        ({"matches": CANDIDATES.candidates[3].matches}, "the two models joined at an inner layer"),
        ({"matches": (CANDIDATES.candidates[3].matches * 2)}, "the two models joined at two layers"),
        ({"others": 0.25}, "the two models joined at their last layer, fitted with what other parties contributed"),
        (
            {"kind": "routed", "matches": (), "gate": GATE},
            "north/digits for familiar samples, south/digits for the rest",
        ),
        ({"kind": "ensemble", "matches": ()}, "the plain average of the two models"),
        ({"kind": "single", "members": (1,), "matches": ()}, "south/digits alone"),
    ],
)
def test_a_candidate_is_said_in_words_without_names_of_nodes(change, words):
    candidate = CANDIDATES.candidates[4].model_copy(update=change)
    found = in_words(candidate, ["north/digits", "south/digits"], frozenset({"0:n9", "1:n12"}))
    assert found == words
    assert not re.search(r"\bn[0-9]", found)


def test_of_three_members_the_others_are_averaged():
    names = ["a/x", "b/x", "c/x"]
    routed = Candidate(id="c09", kind="routed", members=(0, 1, 2), gate=GATE)
    words = "a/x for familiar samples, the average of the other two for the rest"
    assert in_words(routed, names, frozenset()) == words
    assert in_words(CANDIDATES.candidates[2], names, frozenset()) == "the plain average of the three models"


def test_very_long_names_are_cut_not_refused():
    long = tuple(
        one.model_copy(update={"repo": f"{party * 90}/{'m' * 90}"})
        for party, one in zip("ns", CANDIDATES.members, strict=True)
    )
    candidates = ROUTED.model_copy(update={"members": long})
    measured = {"north": evaluation([0.5] * 7, own=0)}
    found = build(
        candidates, measured, Decision("c05"), requester="north", parties_of_members=["p" * 90, "q" * 90], job="job_1"
    )
    assert all(len(one.label) <= 200 for one in found.candidates)


def test_gains_are_those_measured_on_the_same_samples():
    north = evaluation([0.98, 0.49, 0.82, 0.9, 0.956, 0.9, 0.94], own=0, validation=[0.5] * 6 + [0.9])
    scores = dict(north.splits["test"].scores)
    paired = {id: Interval(value=0.1, low=low, high=0.2) for id, low in (("c02", 0.05), ("c05", 0.06), ("c06", 0.07))}
    scores["c04"] = scores["c04"].model_copy(update={"against": paired})
    test = north.splits["test"].model_copy(update={"scores": scores})
    gains = (
        routed_report("c04", north=north.model_copy(update={"splits": {**north.splits, "test": test}}))
        .parties["north"]
        .gains
    )
    assert gains == {"own": scores["c04"].difference, "ensemble": paired["c02"], "routed": paired["c06"]}


def with_gains(own=None, ensemble=None, routed=None, verdict="adopt", chosen="c04", metric="accuracy"):
    """A report for north whose paired intervals are these; its chosen model reaches 0.956."""
    values = [0.98, 0.49, 0.82, 0.9, 0.956, 0.9, 0.94]
    north = evaluation(values, own=0, validation=[0.5] * 6 + [0.9], metric=metric)
    scores = dict(north.splits["test"].scores)
    against = {id: Interval(**one) for id, one in (("c02", ensemble), ("c06", routed)) if one}
    difference = Interval(**own) if own else scores[chosen].difference
    scores[chosen] = scores[chosen].model_copy(update={"against": against, "difference": difference})
    test = north.splits["test"].model_copy(update={"scores": scores})
    north = north.model_copy(update={"splits": {**north.splits, "test": test}})
    decision = Decision(chosen, verdicts={"north": verdict})
    return build(
        ROUTED, {"north": north}, decision, requester="north", parties_of_members=["north", "south"], job="job_1"
    )


def span(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_the_gain_stands_in_one_sentence_at_the_top():
    found = with_gains(span(0.03, 0.01, 0.05), span(0.136, 0.1, 0.17), span(0.016, 0.002, 0.03))
    said = sentence(found, "north")
    assert said == (
        "The chosen model reaches 95.6 % (accuracy) on north's test data, 3.0 points better than its own model (95 % "
        "interval: 1.0 better to 5.0 better)."
    )
    (further,) = remarks(found, "north")
    assert further == (
        "It is 13.6 points better than the plain ensemble (95 % interval: 10.0 better to 17.0 better) and 1.6 points "
        "better than routing alone (95 % interval: 0.2 better to 3.0 better)."
    )
    assert decision(found, "north") == "Adopt"
    top = Page(to_html(found)).text.split("Every model on everyone's data")[0]
    assert said in top
    assert further not in top
    assert further in Page(to_html(found)).text
    assert "Chosen for north: the two models joined at their last layer" in top


def test_adopt_without_a_gain_says_so():
    found = with_gains(span(0.0, -0.01, 0.01), span(0.136, 0.1, 0.17), span(0.0, -0.01, 0.01))
    assert decision(found, "north") == "Adopt, but no gain is shown"
    _, none, routing = remarks(found, "north")
    assert none.startswith("No gain over its own model is shown on these 200 samples")
    assert routing.startswith("Routing alone, without any stitch, does at least as well")
    for part in (none, routing, "Adopt, but no gain is shown", "the same as its own model"):
        assert part in Page(to_html(found)).text


def test_what_the_own_model_keeps_is_not_called_adopted():
    found = with_gains(chosen="c00")
    assert decision(found, "north") == "Its own model stays"
    assert sentence(found, "north").startswith("Its own model stays the choice and reaches 98.0 %")


def test_of_errors_less_is_better():
    found = with_gains(span(-0.03, -0.05, -0.01), metric="mae")
    assert "0.030 better than its own model (95 % interval: 0.010 better to 0.050 better)" in sentence(found, "north")
    assert decision(found, "north") == "Adopt"


def test_who_is_told_not_to_adopt_reads_what_to_do_with_the_command():
    found = routed_report("c04")
    south = found.parties["south"].model_copy(update={"verdict": "reject"})
    found = found.model_copy(update={"parties": {**found.parties, "south": south}})
    what, command = advice(found, "south")
    assert "south can keep its own model, or ask for one that is fitted on its own data" in what
    assert command == "suture stitch south/digits north/digits --dataset NAME --evaluate-at north"
    assert command in Page(to_html(found)).text
    assert advice(found, "north") is None
    asker = found.parties["north"].model_copy(update={"verdict": "reject"})
    told = advice(found.model_copy(update={"parties": {"north": asker}}), "north")
    assert told == ("north can keep its own model, and look for other models to ask with:", "suture models")


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (None, "is not declared"),
        ("undeclared", "is not declared"),
        ("matches", "the digest matches: these samples took no part in it"),
        ("differs", "digest differs from the site's"),
        ("no_digest", "no digest shows that it was the site's"),
        ("all", "is not that of a test"),
    ],
)
def test_the_report_says_of_training_what_is_declared(training, words):
    north = NORTH.model_copy(update={"training": training})
    found = report({"north": north, "east": evaluation([0.5, 0.6, 0.7, 0.8, 0.9])})
    assert words in Page(to_html(found)).text
    assert "trained none of them" in training_words(found.parties["east"], "east")
    assert "took no part in training" not in Page(to_html(found)).text


def warned_of(found, party):
    """What is said beside that no numbers by label are told, as in most of these reports."""
    return [one for one in warnings(found.parties[party], party) if "tells no numbers by label" not in one]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "calling everything so is right as often"),
        ({"0": (12, 0.0), "1": (188, 1.0)}, "The chosen model calls all of north's samples 1"),
        ({"0": (12, 0.1), "1": (188, 1.0)}, None),
        ({"1": (188, 1.0)}, None),
        ({"1": (20, 0.0), "2": (100, 1.0)}, None),  # what it calls the others is not told
    ],
)
def test_accuracy_that_does_not_show_whether_labels_are_told_apart_is_said_to(classes, words):
    test = NORTH.splits["test"]
    told = {
        label: ClassScores(n=n, scores=dict.fromkeys(test.scores, 0.5) | {"c04": right})
        for label, (n, right) in classes.items()
    }
    full = test.model_copy(update={"n": 200, "classes": told})
    found = report({"north": NORTH.model_copy(update={"splits": {**NORTH.splits, "test": full}})})
    said = warnings(found.parties["north"], "north")
    assert len(said) == (words is not None)
    assert words is None or words in said[0]
    assert words is None or words in Page(to_html(found)).text


def test_an_own_model_without_an_error_is_warned_of():
    perfect = report({"north": evaluation([1.0, 0.49, 0.82, 0.9, 0.956], own=0, n=269)})
    (said,) = warned_of(perfect, "north")
    assert "no error on 269 test samples" in said
    assert "Warning. north's own model makes no error" in Page(to_html(perfect)).text
    assert warned_of(report(), "north") == []


@pytest.mark.parametrize(
    ("train", "words"), [((0.99, 0.98, 1.0), "learnt its training samples by heart"), ((0.5, 0.4, 0.6), "never saw")]
)
def test_a_gap_between_train_and_test_is_warned_of(train, words):
    value, low, high = train
    score = TrainScore(value=value, low=low, high=high, n=500)
    measured = evaluation([0.8, 0.49, 0.82, 0.9, 0.956], own=0).model_copy(update={"train": score})
    (said,) = warned_of(report({"north": measured}), "north")
    assert words in said
    close = measured.model_copy(update={"train": TrainScore(value=0.83, low=0.8, high=0.86, n=500)})
    assert warned_of(report({"north": close}), "north") == []


def test_what_repeated_exact_numbers_tell_is_said():
    def of(**terms):
        return report({"north": NORTH, "south": SOUTH.model_copy(update=terms)})

    exact = of(trusted=(Trusted(party="north", key="a" * 64),))
    assert assumed(exact)[-1] == REPEATED
    assert "sites allow a party only so many in a month" in Page(to_html(exact)).text
    # Neither holds for noise, nor for a party that ran its own models alone.
    noisy, own = of(privacy=Privacy(epsilon=8, delta=1e-5)), of(trusted=(Trusted(party="south"),))
    assert REPEATED not in [*assumed(noisy), *assumed(own)]


def test_patients_are_told_beside_samples():
    few = {split: one.model_copy(update={"patients": 40}) for split, one in SOUTH.splits.items()}
    found = report({"north": NORTH, "south": SOUTH.model_copy(update={"splits": few})})
    assert (found.parties["south"].patients, found.parties["north"].patients) == (40, None)
    assert "Measured on 200 test samples of 40 patients at south." in Page(to_html(found)).text
    assert decision(found, "south") == "Look closely"


def test_too_few_patients_are_called_so():
    few = {split: one.model_copy(update={"patients": 4}) for split, one in SOUTH.splits.items()}
    found = report({"north": NORTH, "south": SOUTH.model_copy(update={"splits": few})})
    (warned,) = warned_of(found, "south")
    assert warned.startswith("south's test samples are of 4 patients, too few to tell")
    for said in (warned, "Look closely: too few patients to tell (4)"):
        assert said in Page(to_html(found)).text
