"""What a choice was worth, by the rules of today and of before, and what the table says of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from suture_contract.documents import Candidate, CandidateSet, Evaluation, Interval, Score, SplitScores
from suture_contract.model.metadata import MemberRef

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import choice
import common
import recipes

#: The own model, the other's, the plain ensemble, then a stitch at one pair of layers and one at two.
KINDS = ("single", "single", "ensemble", "stitched", "stitched")
PAIRS = (0, 0, 0, 1, 2)


def evaluation(own: int, validation: list[float], test: list[float]) -> Evaluation:
    def split(values: list[float]) -> SplitScores:
        scores = {}
        for number, value in enumerate(values):
            difference = value - values[own]
            paired = Interval(value=difference, low=difference - 0.03, high=difference + 0.03)
            scores[f"c{number:02}"] = Score(value=value, low=value - 0.02, high=value + 0.02, difference=paired)
        return SplitScores(n=100, scores=scores)

    return Evaluation(metric="accuracy", own=own, splits={"validation": split(validation), "test": split(test)})


@pytest.fixture
def asked() -> choice.Asked:
    refs = tuple(MemberRef(repo=f"{party}/m", revision="a" * 40, sha256="b" * 64) for party in ("north", "south"))
    matches = [{"points": {"0": "a", "1": "b"}, "alpha": 0.5, "cka": 0.9, "stitches": []}] * 2
    candidates = tuple(
        Candidate.model_construct(
            id=f"c{number:02}", kind=kind, members=(0, 1), matches=tuple(matches[:pairs]), gate=None, site_prior=None
        )
        for number, (kind, pairs) in enumerate(zip(KINDS, PAIRS, strict=True))
    )
    return choice.Asked.model_construct(
        requester="north",
        candidates=CandidateSet.model_construct(
            task="classification", members=refs, labels=("a", "b"), n=100, seed=0, candidates=candidates
        ),
        evaluations={
            "north": evaluation(0, [0.90, 0.40, 0.70, 0.895, 0.87], [0.86, 0.40, 0.72, 0.84, 0.86]),
            "south": evaluation(1, [0.30, 0.90, 0.80, 0.82, 0.88], [0.30, 0.88, 0.78, 0.80, 0.84]),
        },
    )


def test_today_takes_the_best_mean_and_the_older_rule_what_loses_least_at_home(asked: choice.Asked) -> None:
    assert choice.chosen_today(asked) == "c04"
    assert choice.chosen_before(asked) == "c03"


def test_worth_is_of_test_data_and_optimism_beyond_own_is_what_the_choice_adds(asked: choice.Asked) -> None:
    worth = choice.worth(asked, "c03")
    assert worth.mean == pytest.approx(0.82)
    assert worth.regret == pytest.approx(0.85 - 0.82)
    assert worth.optimism == pytest.approx((0.895 + 0.82) / 2 - 0.82)
    assert worth.beyond_own == pytest.approx(worth.optimism - (0.04 + 0.02) / 2)
    assert (worth.home, worth.away, worth.lost) == pytest.approx((-0.02, 0.50, 0.0))
    assert choice.worth(asked, "c02").lost == 1.0


def test_of_the_paper_one_pair_is_told_from_two(asked: choice.Asked) -> None:
    offered = {
        name: [own.id for own in asked.candidates.candidates if recipes.is_offered(own, pairs)]
        for name, pairs in recipes.PAIRS.items()
    }
    assert offered == {
        "one pair": ["c00", "c01", "c02", "c03"],
        "two pairs": ["c00", "c01", "c02", "c04"],
        "either": ["c00", "c01", "c02", "c03", "c04"],
    }
    one = choice.restricted(asked, offered["one pair"])
    assert choice.chosen_today(one) == "c03"
    assert set(one.evaluations["south"].splits["test"].scores) == set(offered["one pair"])
    assert recipes.cell(asked, recipes.best_of(asked)) == pytest.approx((0.86, 0.84, 0.85, 0.0))


def test_intervals_over_seeds_are_students() -> None:
    assert common.over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    many = common.over_seeds([0.0, 1.0] * 20)
    assert many[1] < 0.5 < many[2]


def test_the_table_compares_the_last_row_with_a_third_of_the_first(asked: choice.Asked) -> None:
    def worth(regret: float) -> choice.Worth:
        return choice.Worth(0.8, regret, 0.0, 0.0, 0.0, 0.0, 0.0)

    table, text = Table(*"abcdefghi"), io.StringIO()
    before, today = [[worth(0.03)], [worth(0.05)]], [[worth(0.01)], [worth(0.01)]]
    choice.add_rows(table, "digits", {choice.BEFORE: before, choice.TODAY: today})
    Console(file=text, width=400).print(table)
    assert "25%" in text.getvalue()
    # 1.00 less a third of 3.00 and of 5.00
    assert "-0.33 (-4.57 to +3.90)" in text.getvalue()
    assert "nothing before" in text.getvalue()
