"""What a report holds: a row for each candidate that counts, for each party, from its test split."""

import json
import re

import pytest
from tests.stitching.reports import NORTH, SOUTH, Page, evaluation, report, routed_report

from suture.responses import read_report
from suture_contract.documents import (
    Contributed,
    Interval,
    Missing,
    Report,
)
from suture_contract.errors import SutureError
from suture_contract.report.html import to_html


def test_each_party_has_its_own_rows_from_its_test_split():
    found = report()
    assert found.parties["north"].rows.keys() == {"chosen", "own", "peer:south/digits", "ensemble", "stitched"}
    assert found.parties["south"].rows.keys() == {"chosen", "peer:north/digits", "own", "ensemble", "stitched"}
    assert found.parties["north"].rows["own"].value == 0.98
    assert found.parties["south"].rows["own"].value == 0.96
    assert found.parties["north"].rows["stitched"] == Interval(value=0.956, low=0.956 - 0.02, high=0.956 + 0.01)
    assert found.parties["north"].n == 1234
    assert found.parties["north"].verdict == "adopt"
    assert found.parties["south"].differences["stitched"].value == pytest.approx(0.003)
    assert "own" not in found.parties["north"].differences


def test_candidates_carry_metrics_front_and_a_description():
    found = {candidate.id: candidate for candidate in report().candidates}
    assert found["c04"].metrics == {"north": 0.956, "south": 0.963}
    assert [found[i].front for i in sorted(found)] == [True, False, False, False, True]
    assert found["c00"].label == "north/digits alone"
    assert found["c03"].label == "stitched at n4 / n7, weight 0.5"
    assert found["c04"].label == "stitched at n9 / n12, weight 0.25, refined"


def test_the_document_survives_a_round_trip():
    found = report(missing=[Missing(party="west", reason="declined")])
    assert Report.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_a_party_without_a_model_has_peers_only():
    found = report({"north": NORTH, "east": evaluation([0.5, 0.6, 0.7, 0.8, 0.9])})
    peers = {"peer:north/digits", "peer:south/digits"}
    assert found.parties["east"].rows.keys() == {"chosen", *peers, "ensemble", "stitched"}
    assert found.parties["east"].differences == {}


def test_a_party_without_a_model_is_a_hospital_that_took_no_part():
    found = report({"north": NORTH, "east": evaluation([0.5, 0.6, 0.7, 0.8, 0.9])})
    page = Page(to_html(found)).text
    assert "no model of its own, no part in the fit" in page
    assert "east has no model among these, and none was fitted to its data" in page
    assert "north has no model" not in page
    helped = found.model_copy(update={"contributions": (Contributed(party="east", n={"train": 50, "validation": 20}),)})
    assert "no part in the fit" not in Page(to_html(helped)).text


def test_when_another_kind_is_chosen_the_best_stitched_one_on_validation_is_still_shown():
    # Over both parties, c03 is the better one on validation, c04 on test: the test split must not decide.
    north = evaluation([0.98, 0.49, 0.82, 0.9, 0.956], own=0, validation=[0.98, 0.49, 0.82, 0.97, 0.95])
    south = evaluation([0.22, 0.97, 0.97, 0.9, 0.963], own=1, validation=[0.22, 0.97, 0.97, 0.94, 0.93])
    found = report({"north": north, "south": south}, chosen="c00")
    assert found.parties["south"].rows["stitched"].value == 0.9
    page = Page(to_html(found)).text
    assert "best stitched ensemble (not chosen)" in page
    assert "Its own model stays the choice" in page


def test_an_incomplete_evaluation_is_refused():
    short = evaluation([0.98, 0.49, 0.82, 0.9], own=0)
    with pytest.raises(SutureError, match="evaluation of north") as error:
        report({"north": short, "south": SOUTH})
    assert error.value.code == "report.incomplete"


@pytest.mark.parametrize("chosen", ["c00", "c01", "c02", "c03", "c04", "c05"])
def test_the_row_chosen_is_what_the_verdict_is_about_whatever_its_kind(chosen):
    found = routed_report(chosen)
    values = {one.id: one.metrics for one in found.candidates}
    for party, column in found.parties.items():
        assert next(iter(column.rows)) == "chosen"
        assert column.rows["chosen"].value == values[chosen][party]
    page = Page(to_html(found))
    north = page.text.split("95 % interval Against own")[1]
    order = re.findall("chosen:|own model|peer south/digits|plain ensemble|routed ensemble|best stitched", north)
    assert order[:3] == ["chosen:", "own model", "peer south/digits"]


@pytest.mark.parametrize(("chosen", "shown"), [("c04", "c06"), ("c02", "c06"), ("c00", "c06"), ("c05", "c05")])
def test_the_routed_row_is_always_there(chosen, shown):
    found = routed_report(chosen)
    values = {one.id: one.metrics for one in found.candidates}
    for party, column in found.parties.items():
        assert column.rows["routed"].value == values[shown][party]


@pytest.mark.parametrize("chosen", ["c00", "c01", "c02", "c04", "c05"])
def test_a_report_from_before_there_was_a_row_chosen_shows_the_same(chosen):
    found = routed_report(chosen)
    document = json.loads(found.model_dump_json(by_alias=True, exclude_none=True))
    for candidate in document["candidates"]:
        del candidate["words"]
    for column in document["parties"].values():
        del column["gains"]
        for by_row in (column["rows"], column["differences"], column["calibration"]):
            by_row.pop("chosen", None)
    read = read_report(json.dumps(document), where="report.json")
    for party, column in found.parties.items():
        assert read.parties[party].rows == column.rows
        assert next(iter(read.parties[party].rows)) == "chosen"
    old = Report.model_validate_json(json.dumps(document))
    assert Page(to_html(old)).text == Page(to_html(read)).text


def test_a_report_whose_choice_is_not_in_it_is_refused():
    document = json.loads(report().model_dump_json(by_alias=True))
    with pytest.raises(SutureError, match="not one of the candidates"):
        read_report(json.dumps({**document, "chosen": "c77"}), where="report.json")
    singles = [{**document["candidates"][0], "id": "c77"}]
    with pytest.raises(SutureError, match="not one of the members"):
        read_report(json.dumps({**document, "chosen": "c77", "candidates": singles}), where="report.json")
