"""A report as a page: whole, without script, with what was measured in words."""

from datetime import datetime, timedelta, timezone

import pytest
from tests.stitching.reports import CANDIDATES, NORTH, SOUTH, Page, report

from suture_contract.documents import (
    Calibration,
    ClassScores,
    Contributed,
    Evaluation,
    Missing,
    Revised,
    SplitScores,
)
from suture_contract.report.build import describe
from suture_contract.report.html import to_html
from suture_contract.report.words import scale_of


def test_the_page_says_what_was_measured():
    page = Page(to_html(report(missing=[Missing(party="west", reason="no_answer")]))).text
    for expected in [
        "Chosen for north: the two models joined at their last layer",
        "95.6 %",
        "93.6 to 96.6",
        "1,234 test samples",
        "Adopt",
        "Look closely",
        "2.4 points worse than its own model",
        "13.6 points better than the plain ensemble",
        "west did not answer in time",
        "job_1",
        "a" * 40,
        "2" * 64,
        "stitched at n9 / n12, weight 0.25, refined",
        "hypervolume 0.9300",
    ]:
        assert expected in page, expected


@pytest.mark.parametrize(
    ("value", "plain", "percent"),
    [(0.5725, "0.573", "57.3 %"), (0.5775, "0.578", "57.8 %"), (0.0005, "0.001", "0.1 %"), (1.0, "1.000", "100.0 %")],
)
def test_terminal_and_page_round_alike(value: float, plain: str, percent: str) -> None:
    from suture_contract.documents import Interval
    from suture_contract.report.words import bracketed

    assert bracketed(Interval(value=value, low=value, high=value)) == f"{plain} [{plain}, {plain}]"
    assert scale_of("accuracy").text(value) == percent
    assert scale_of("auroc").text(value) == plain
    assert scale_of("accuracy").change(-value) == f"−{percent.removesuffix(' %')} points"


def test_the_page_is_self_contained_well_formed_and_without_script():
    text = to_html(report())
    page = Page(text)
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    assert not any(
        name in ("src", "href", "srcset") or name.startswith("on") for _, found in page.elements for name in found
    )
    assert "url(" not in text
    assert "@import" not in text
    assert {"default-src 'none'; style-src 'unsafe-inline'"} <= {found.get("content") for _, found in page.elements}
    assert len(text) < 60_000


def test_a_page_that_stands_alone_says_when_it_was_made_and_of_what():
    made = datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    text = to_html(report(), made, "north/<both> 0123456789")
    assert '<time datetime="2026-02-28T23:30:00+00:00">2026-02-28 23:30 UTC</time>' in text
    assert "</time>, version 1, of north/&lt;both&gt; 0123456789.</p>" in text
    assert "<time" not in to_html(report())


def test_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>'
    # The document itself refuses such names; the page must not rely on it.
    found = report().model_copy(update={"requester": evil, "parties": {evil: report().parties["north"]}})
    candidates = tuple(c.model_copy(update={"label": evil, "metrics": {evil: 0.5}}) for c in found.candidates)
    missing = (Missing(party="west", reason="failed").model_copy(update={"party": evil}),)
    text = to_html(found.model_copy(update={"candidates": candidates, "missing": missing}))
    assert "<script" not in text
    assert Page(text).open == []


def told_in_full(evaluation):
    """The same evaluation with calibration, and label "1" with enough samples to be told of."""
    test = evaluation.splits["test"]
    scores = {
        id: score.model_copy(update={"calibration": Calibration(ece=0.031, brier=0.207)})
        for id, score in test.scores.items()
    }
    classes = {"1": ClassScores(n=57, scores=dict.fromkeys(test.scores, 0.25) | {"c04": 0.75})}
    full = SplitScores(n=test.n, scores=scores, classes=classes)
    return evaluation.model_copy(update={"splits": {**evaluation.splits, "test": full}})


def test_calibration_and_labels_are_told_by_row():
    found = report({"north": told_in_full(NORTH), "south": SOUTH})
    north = found.parties["north"]
    assert north.calibration.keys() == north.rows.keys()
    assert [(one.label, one.n) for one in north.classes] == [("1", 57)]
    others = {"own": 0.25, "peer:south/digits": 0.25, "ensemble": 0.25}
    assert north.classes[0].rows == {"chosen": 0.75, **others, "stitched": 0.75}
    assert found.parties["south"].classes == ()
    text = Page(to_html(found)).text
    assert "0.031 / 0.207" in text
    assert "57 75.0 % 25.0 % 25.0 % 25.0 %" in text


def test_the_matrix_names_every_party_and_why_cells_are_missing():
    missing = [Missing(party="west", reason="declined"), Missing(party="far", reason="no_answer")]
    page = Page(to_html(report(missing=missing)))
    assert "Every model on everyone's data" in page.text
    heads = "Party chosen north/digits alone south/digits alone plain ensemble"
    assert f"{heads} north accuracy, n = 1,234 95.6 % 98.0 % 49.0 % 82.0 %" in page.text
    assert "west declined" in page.text
    assert "far no answer" in page.text


def test_an_older_evaluation_is_still_read():
    document = NORTH.model_dump(mode="json", by_alias=True, exclude_none=True)
    for split in document["splits"].values():
        del split["classes"]
    assert Evaluation.model_validate(document) == NORTH


def test_another_version_says_what_changed():
    assert "Version" not in Page(to_html(report())).text
    found = report(version=2, revised=Revised(before="c03", added=("south",)))
    text = Page(to_html(found)).text
    assert "Version 2 of this report. Since version 1, south has been added." in text
    assert "The choice changed from c03 (stitched at n4 / n7, weight 0.5) to c04" in text
    stays = Page(to_html(report(version=2, revised=Revised(before="c04", added=("south",))))).text
    assert "The choice stays the same." in stays


def test_who_contributed_is_named():
    assert "contributed" not in Page(to_html(report())).text
    south = Contributed(party="south", n={"train": 1300, "validation": 80}, epsilon=8, delta=1e-5)
    found = report().model_copy(update={"contributions": (south,)})
    text = Page(to_html(found)).text
    assert "south contributed sums over 1,300 training and 80 validation samples to the fit, with noise" in text
    assert "(epsilon 8, delta 1e-05)" in text


def test_a_candidate_with_contributed_moments_says_so():
    plain = CANDIDATES.candidates[3]
    weighed = plain.model_copy(update={"others": 0.25})
    assert describe(weighed, ["a", "b"]) == f"{describe(plain, ['a', 'b'])}, 25 % of the moments from others"
