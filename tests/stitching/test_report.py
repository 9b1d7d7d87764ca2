import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest

from suture.responses import read_report
from suture_contract.documents import (
    Calibration,
    CalibrationBin,
    Candidate,
    CandidateSet,
    ClassScores,
    Contributed,
    Evaluation,
    Gate,
    Interval,
    Match,
    Missing,
    Report,
    Revised,
    Score,
    SplitScores,
    TrainScore,
)
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef, Trusted
from suture_contract.privacy import Privacy
from suture_contract.report import build, curves, plot
from suture_contract.report.assumed import REPEATED, assumed
from suture_contract.report.build import describe, in_words
from suture_contract.report.gains import advice, decision, headline, remarks, sentence
from suture_contract.report.html import to_html
from suture_contract.report.trust import training_words, warnings
from suture_contract.report.words import scale_of


@dataclass
class Decision:
    chosen: str
    front: tuple[str, ...] = ("c00", "c04")
    hypervolume: float | None = 0.93
    verdicts: dict[str, str] = field(default_factory=lambda: {"north": "adopt", "south": "care", "east": "reject"})


SINGLES = ("c00", "c01")
CANDIDATES = CandidateSet(
    task="classification",
    members=(
        MemberRef(repo="north/digits", revision="a" * 40, sha256="1" * 64),
        MemberRef(repo="south/digits", revision="b" * 40, sha256="2" * 64),
    ),
    labels=("0", "1"),
    n=100,
    seed=0,
    candidates=(
        Candidate(id="c00", kind="single", members=(0,)),
        Candidate(id="c01", kind="single", members=(1,)),
        Candidate(id="c02", kind="ensemble", members=(0, 1)),
        Candidate(
            id="c03",
            kind="stitched",
            members=(0, 1),
            matches=(Match(points={"0": "n4", "1": "n7"}, alpha=0.5, stitches=()),),
        ),
        Candidate(
            id="c04",
            kind="stitched",
            members=(0, 1),
            matches=(Match(points={"0": "n9", "1": "n12"}, alpha=0.25, stitches=()),),
            refined=True,
        ),
    ),
)


def test_a_gated_candidate_says_so():
    gate = Gate(points={"0": "n1", "1": "n2"}, weight="g.weight", bias="g.bias", near=1.0, far=1.25)
    plain = CANDIDATES.candidates[4]
    gated = plain.model_copy(update={"gate": gate})
    assert describe(gated, ["a", "b"]) == f"{describe(plain, ['a', 'b'])}, familiar samples only (to 1.25)"


def evaluation(values, own=None, n=200, metric="accuracy", validation=None):
    def scores(numbers):
        return {
            f"c{i:02}": Score(
                value=value,
                low=value - 0.02,
                high=value + 0.01,
                difference=None
                if own is None
                else Interval(
                    value=value - numbers[own], low=value - numbers[own] - 0.03, high=value - numbers[own] + 0.02
                ),
            )
            for i, value in enumerate(numbers)
        }

    return Evaluation(
        metric=metric,
        higher_is_better=metric != "mae",
        own=own,
        splits={
            "validation": SplitScores(n=99, scores=scores(validation or values)),
            "test": SplitScores(n=n, scores=scores(values)),
        },
    )


NORTH = evaluation([0.98, 0.49, 0.82, 0.9, 0.956], own=0, n=1234)
SOUTH = evaluation([0.21, 0.96, 0.97, 0.9, 0.963], own=1)


def report(evaluations=None, chosen="c04", **options):
    return build(
        CANDIDATES,
        evaluations or {"north": NORTH, "south": SOUTH},
        Decision(chosen),
        requester="north",
        parties_of_members=["north", "south"],
        job="job_1",
        **options,
    )


class Page(HTMLParser):
    """Collects every element with its attributes, and the text outside of `style`."""

    VOID = frozenset({"meta", "path", "rect", "circle", "line", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"<{tag}> closed out of order"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


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


def test_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>'
    # The document itself refuses such names; the page must not rely on it.
    found = report().model_copy(update={"requester": evil, "parties": {evil: report().parties["north"]}})
    candidates = tuple(c.model_copy(update={"label": evil, "metrics": {evil: 0.5}}) for c in found.candidates)
    missing = (Missing(party="west", reason="failed").model_copy(update={"party": evil}),)
    text = to_html(found.model_copy(update={"candidates": candidates, "missing": missing}))
    assert "<script" not in text
    assert Page(text).open == []


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


def crowded(chosen=(0.941, 0.952), seed=0):
    """A report of sixty candidates close together, with the members alone far away."""
    random = np.random.default_rng(seed)
    matches = (Match(points={"0": "n4", "1": "n7"}, alpha=0.5, stitches=()),)
    more = [Candidate(id=f"c{i:02}", kind="stitched", members=(0, 1), matches=matches) for i in range(5, 60)]
    north, south = (list(random.uniform(0.92, 0.95, 60)) for _ in range(2))
    north[:5], south[:5] = [0.78, 0.52, 0.93, 0.94, chosen[0]], [0.03, 0.96, 0.931, 0.94, chosen[1]]
    candidates = CANDIDATES.model_copy(update={"candidates": (*CANDIDATES.candidates, *more)})
    evaluations = {"north": evaluation(north, own=0), "south": evaluation(south, own=1)}
    decision = Decision("c04")
    return build(
        candidates, evaluations, decision, requester="north", parties_of_members=["north", "south"], job="job_1"
    )


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


GATE = Gate(points={"0": "n1", "1": "n2"}, weight="g.weight", bias="g.bias", near=1.0, far=1.25, withdraws=0)
OPEN_GATE = GATE.model_copy(update={"withdraws": None})
ROUTED = CANDIDATES.model_copy(
    update={
        "candidates": (
            *CANDIDATES.candidates,
            Candidate(id="c05", kind="routed", members=(0, 1), gate=GATE),
            Candidate(id="c06", kind="routed", members=(0, 1), gate=GATE.model_copy(update={"far": 2.0})),
        )
    }
)


def routed_report(chosen, north=None, south=None):
    """A report in which routing was measured, too: of two, c06 is the better one on validation, c05 on test."""
    measured = {
        "north": north or evaluation([0.98, 0.49, 0.82, 0.9, 0.95, 0.97, 0.96], own=0, validation=[0.5] * 6 + [0.9]),
        "south": south or evaluation([0.2, 0.96, 0.97, 0.9, 0.96, 0.95, 0.94], own=1, validation=[0.5] * 6 + [0.9]),
    }
    return build(
        ROUTED, measured, Decision(chosen), requester="north", parties_of_members=["north", "south"], job="job_1"
    )


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


def test_a_report_whose_choice_is_not_in_it_is_refused():
    document = json.loads(report().model_dump_json(by_alias=True))
    with pytest.raises(SutureError, match="not one of the candidates"):
        read_report(json.dumps({**document, "chosen": "c77"}), where="report.json")
    singles = [{**document["candidates"][0], "id": "c77"}]
    with pytest.raises(SutureError, match="not one of the members"):
        read_report(json.dumps({**document, "chosen": "c77", "candidates": singles}), where="report.json")


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


def test_an_own_model_without_an_error_is_warned_of():
    perfect = report({"north": evaluation([1.0, 0.49, 0.82, 0.9, 0.956], own=0, n=269)})
    (said,) = warnings(perfect.parties["north"], "north")
    assert "no error on 269 test samples" in said
    assert "Warning. north's own model makes no error" in Page(to_html(perfect)).text
    assert warnings(report().parties["north"], "north") == []


@pytest.mark.parametrize(
    ("train", "words"), [((0.99, 0.98, 1.0), "learnt its training samples by heart"), ((0.5, 0.4, 0.6), "never saw")]
)
def test_a_gap_between_train_and_test_is_warned_of(train, words):
    value, low, high = train
    score = TrainScore(value=value, low=low, high=high, n=500)
    measured = evaluation([0.8, 0.49, 0.82, 0.9, 0.956], own=0).model_copy(update={"train": score})
    (said,) = warnings(report({"north": measured}).parties["north"], "north")
    assert words in said
    close = measured.model_copy(update={"train": TrainScore(value=0.83, low=0.8, high=0.86, n=500)})
    assert warnings(report({"north": close}).parties["north"], "north") == []


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
    (warned,) = warnings(found.parties["south"], "south")
    assert warned.startswith("south's test samples are of 4 patients, too few to tell")
    for said in (warned, "Look closely: too few patients to tell (4)"):
        assert said in Page(to_html(found)).text
