"""What a report draws: marks, names, ticks, curves and counts."""

import re

import numpy as np
import pytest
from tests.stitching.reports import CANDIDATES, NORTH, SOUTH, Page, crowded, evaluation, report

from suture_contract.documents import (
    CalibrationBin,
    ClassReport,
    Missing,
)
from suture_contract.privacy import Privacy
from suture_contract.report import curves, plot
from suture_contract.report.html import to_html
from suture_contract.report.words import scale_of


def test_marks_lie_inside_the_frame_and_better_is_up_and_right():
    (drawn,) = plot.plots(report())
    assert len(drawn.marks) == len(CANDIDATES.candidates)
    for mark in drawn.marks:
        assert plot.WIDE.left <= mark.x <= plot.WIDE.right
        assert plot.WIDE.top <= mark.y <= plot.WIDE.bottom
    where = {mark.tooltip.split(":")[0]: mark for mark in drawn.marks}
    assert where["north/digits alone"].x > where["plain ensemble"].x > where["south/digits alone"].x
    assert where["plain ensemble"].y < where["north/digits alone"].y
    (chosen,) = [mark for mark in drawn.marks if mark.role == "chosen"]
    assert chosen.front
    assert chosen is drawn.marks[-1]  # drawn last, so that nothing covers it
    assert {tag.text for tag in drawn.tags} == {"chosen", "plain ensemble", "north/digits alone", "south/digits alone"}


def test_a_metric_that_should_be_low_is_turned_round():
    values = [2.0, 8.0, 5.0, 3.0, 1.0]
    found = report({"north": evaluation(values, own=0, metric="mae"), "south": evaluation(values, own=1, metric="mae")})
    (drawn,) = plot.plots(found)
    where = {mark.tooltip.split(":")[0]: mark for mark in drawn.marks}
    chosen = next(mark for mark in drawn.marks if mark.role == "chosen")
    assert chosen.x == max(mark.x for mark in drawn.marks)
    assert chosen.y == min(mark.y for mark in drawn.marks)
    assert where["south/digits alone"].x == min(mark.x for mark in drawn.marks)
    assert "1.000 better than its own model" in Page(to_html(found)).text


def test_three_parties_give_a_plot_for_each_pair_with_the_requester():
    found = report({"north": NORTH, "south": SOUTH, "east": evaluation([0.5, 0.6, 0.7, 0.8, 0.9])})
    assert [(drawn.x_party, drawn.y_party) for drawn in plot.plots(found)] == [("north", "east"), ("north", "south")]
    # Each for a wide and for a narrow page, that with south closer, too.
    assert len([tag for tag, found in Page(to_html(found)).elements if found.get("role") == "img"]) == 6


def boxes(drawn):
    """What each named mark of a plot covers, in pixels, then each name."""
    for mark in drawn.marks:
        if mark.name:
            yield (mark.x - 6, mark.y - 6, 12, 12)
    for tag in drawn.tags:
        width = 7.2 * len(tag.text)
        yield (tag.x - (width if tag.anchor == "end" else 0), tag.y - 12, width, 14)


@pytest.mark.parametrize("frame", [plot.WIDE, plot.NARROW])
@pytest.mark.parametrize("draw", [plot.plots, plot.closer])
def test_no_name_covers_another_or_a_named_mark(frame, draw):
    for seed in range(20):
        place = np.random.default_rng(seed).uniform(0.92, 0.95, 2)
        (drawn,) = draw(crowded(tuple(place), seed), frame)
        assert "chosen" in {tag.text for tag in drawn.tags}
        covered = list(boxes(drawn))
        for index in range(len(covered) - len(drawn.tags), len(covered)):
            x, y, width, height = covered[index]
            assert frame.left - 14 <= x
            assert x + width <= frame.width + 8
            for left, top, wide, high in covered[:index]:
                apart = x >= left + wide or left >= x + width or y >= top + high or top >= y + height
                assert apart, (seed, covered[index])


def test_labels_are_counted_right_and_wrong_where_their_shares_are_exact():
    found = report()
    rows = {"chosen": 0.9, "own": 0.75, "ensemble": 0.5}
    labels = (ClassReport(label="healthy", n=100, rows=rows), ClassReport(label="ill", n=40, rows=rows))
    north = found.parties["north"].model_copy(update={"classes": labels})

    def page_of(party):
        return Page(to_html(found.model_copy(update={"parties": {**found.parties, "north": party}})))

    assert re.search(r"healthy 100 90 10 75 25 ill 40 36 4 30 10", page_of(north).text)
    for other in ({"privacy": Privacy(epsilon=8, delta=1e-5)}, {"classes": ()}):
        assert "called otherwise" not in page_of(north.model_copy(update=other)).text


def test_calibration_curves_are_drawn_where_they_were_measured():
    found = report()
    bins = tuple(CalibrationBin(upto=(i + 1) / 5, n=40, predicted=i / 5 + 0.1, events=8 * i) for i in range(5))
    north = found.parties["north"].model_copy(update={"curves": {"chosen": bins, "own": bins[:3]}})
    drawn = curves.curves(north, {"chosen": "the chosen one", "own": "own model"})
    assert [(curve.role, len(curve.points)) for curve in drawn] == [("single", 3), ("chosen", 5)]
    assert all(curves.LEFT < point.x < curves.RIGHT for curve in drawn for point in curve.points)
    first, *_, last = drawn[1].points
    assert (first.y, last.y) == (curves.BOTTOM, curves.BOTTOM - 0.8 * (curves.BOTTOM - curves.TOP))
    page = Page(to_html(found.model_copy(update={"parties": {**found.parties, "north": north}})))
    assert len([one for _, one in page.elements if "curve" in one.get("class", "").split()]) == 1
    assert "0.90 was given, 0.80 came true, n 40" in page.text
    assert "came true" not in Page(to_html(found)).text


def test_a_closer_look_leaves_out_what_is_far_away_and_names_it():
    found = crowded()
    (near,), (whole,) = plot.closer(found), plot.plots(found)
    assert len(whole.marks) == 60
    assert [words.partition(":")[0] for words in near.outside] == [
        "north/digits alone",
        "south/digits alone",
        "plain ensemble",
    ]
    assert 10 < len(near.marks) < 30
    assert "chosen" in {mark.role for mark in near.marks}
    spread = [max(m.x for m in drawn.marks) - min(m.x for m in drawn.marks if m.name == "") for drawn in (near, whole)]
    assert spread[0] > 4 * spread[1]
    page = Page(to_html(found))
    assert "Outside of it: north/digits alone: north 78.0 %, south 3.0 %" in page.text
    assert len([found for _, found in page.elements if found.get("role") == "img"]) == 4
    # South's own model does better there than all that is shown: nothing is better than both.
    assert (near.x_own, near.better) == (None, None)
    equal = report({"north": evaluation([0.5] * 5, own=0), "south": evaluation([0.0] * 5, own=1)})
    assert plot.closer(equal) == [None]
    assert plot.closer(report({"north": evaluation([0.5] * 5, metric="mae"), "south": evaluation([2.0, 8, 5, 3, 1])}))


def test_the_requester_alone_has_a_report_without_a_plot():
    text = to_html(report({"north": NORTH}, missing=[Missing(party="south", reason="declined")]))
    assert Page(text).open == []
    assert plot.plots(report({"north": NORTH})) == []


def test_candidates_that_are_all_equal_can_be_drawn():
    (drawn,) = plot.plots(report({"north": evaluation([0.5] * 5, own=0), "south": evaluation([0.0] * 5, own=1)}))
    assert len({(mark.x, mark.y) for mark in drawn.marks}) == 1
    assert drawn.x_ticks
    assert drawn.y_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.41, 0.52, [0.42, 0.44, 0.46, 0.48, 0.5, 0.52]),
        (-3, 9, [-2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert plot.ticks(low, high) == pytest.approx(expected)


def test_numbers_are_written_with_their_unit_and_a_true_minus():
    accuracy, dice = scale_of("accuracy"), scale_of("dice")
    assert accuracy.text(0.9564) == "95.6 %"
    assert accuracy.change(-0.0123) == "−1.2 points"
    assert accuracy.change(0.0123) == "+1.2 points"
    assert dice.text(0.9564) == "0.956"
    assert dice.change(-0.01) == "−0.010"
