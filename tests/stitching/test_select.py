"""The choice among candidates and the verdicts."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from suture_contract.documents import Candidate, CandidateSet, Evaluation, Interval, Score, SplitScores
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef
from suture_stitching.evaluation.rule import RULE, THRESHOLDS, Thresholds
from suture_stitching.evaluation.select import choose

MEMBERS = tuple(MemberRef(repo=f"{p}/m", revision="a" * 40, sha256="b" * 64) for p in ("north", "south"))
KINDS = [("single", (0,)), ("single", (1,)), ("ensemble", (0, 1)), ("stitched", (0, 1)), ("stitched", (0, 1))]
CANDIDATES = CandidateSet(
    task="classification",
    members=MEMBERS,
    labels=("a", "b"),
    n=100,
    seed=0,
    candidates=tuple(
        Candidate(id=f"c{i:02}", kind=kind, members=members, refined=i == 4) for i, (kind, members) in enumerate(KINDS)
    ),
)


def evaluation(
    values: list[float], own: int | None, *, noise: float = 0.02, test: list[float] | None = None
) -> Evaluation:
    def split(numbers: list[float]) -> SplitScores:
        def score(value: float) -> Score:
            difference = value - numbers[own] if own is not None else 0.0
            return Score(
                value=value,
                low=value - noise,
                high=value + noise,
                difference=None
                if own is None
                else Interval(value=difference, low=difference - noise, high=difference + noise),
            )

        return SplitScores(n=100, scores={f"c{i:02}": score(value) for i, value in enumerate(numbers)})

    return Evaluation(metric="accuracy", own=own, splits={"validation": split(values), "test": split(test or values)})


def test_the_best_for_others_among_those_that_keep_up() -> None:
    choice = choose(
        CANDIDATES,
        {
            "north": evaluation([0.99, 0.50, 0.82, 0.98, 0.985], 0),
            "south": evaluation([0.20, 0.95, 0.97, 0.96, 0.90], 1),
        },
        requester="north",
    )
    assert choice.chosen == "c03"
    assert choice.verdicts == {"north": "adopt", "south": "adopt"}
    assert set(choice.front) == {"c00", "c02", "c03", "c04"}
    assert choice.hypervolume == pytest.approx(0.99 * 0.20 + 0.985 * 0.70 + 0.98 * 0.06 + 0.82 * 0.01)


def test_the_best_mean_of_all_parties_wins() -> None:
    def chosen(south: float) -> str:
        evaluations = {
            "north": evaluation([0.99, 0.50, 0.82, 0.97, 0.989], 0),
            "south": evaluation([0.20, 0.95, 0.80, 0.94, south], 1),
            "east": evaluation([0.20, 0.95, 0.80, 0.94, south], None),
        }
        return choose(CANDIDATES, evaluations, requester="north").chosen

    assert chosen(0.90) == "c03"
    assert chosen(0.935) == "c04"


@pytest.mark.parametrize(("patients", "chosen"), [(None, "c04"), (100, "c04"), (4, "c04"), (1, "c03")])
def test_a_party_weighs_the_root_of_its_patients(patients: int | None, chosen: str) -> None:
    south = evaluation([0.20, 0.95, 0.80, 0.80, 0.90], 1)
    validation = south.splits["validation"].model_copy(update={"patients": patients})
    south = south.model_copy(update={"splits": {**south.splits, "validation": validation}})
    north = evaluation([0.99, 0.50, 0.82, 0.99, 0.972], 0)
    assert choose(CANDIDATES, {"north": north, "south": south}, requester="north").chosen == chosen


def test_validation_chooses_and_test_reports() -> None:
    choice = choose(
        CANDIDATES,
        {
            "north": evaluation([0.9, 0.5, 0.9, 0.9, 0.9], 0, test=[0.9, 0.5, 0.9, 0.87, 0.9]),
            "south": evaluation([0.2, 0.9, 0.8, 0.9, 0.8], 1, test=[0.2, 0.9, 0.9, 0.8, 0.9]),
        },
        requester="north",
    )
    assert choice.chosen == "c03"
    assert choice.verdicts == {"north": "care", "south": "reject"}


def test_when_none_keeps_up_the_own_model_stays() -> None:
    choice = choose(CANDIDATES, {"north": evaluation([0.99, 0.5, 0.8, 0.9, 0.9], 0)}, requester="north")
    assert choice.chosen == "c00"
    assert choice.verdicts == {"north": "reject"}


@pytest.mark.parametrize(
    ("north", "south", "chosen"),
    [
        ((0.6, 0.85), (0.7, 0.65), "c04"),  # two of some forty samples
        ((0.6, 0.83), (0.7, 0.99), "c00"),
        ((0.89, 0.87), (0.31, 0.65), "c04"),
        ((0.89, 0.87), (0.85, 0.86), "c03"),
    ],
)
@pytest.mark.parametrize("lower_is_better", [False, True])
def test_what_chance_explains_may_be_given_for_more(
    lower_is_better: bool, north: tuple[float, float], south: tuple[float, float], chosen: str
) -> None:
    def of(values: list[float], own: int, noise: float = 0.02) -> Evaluation:
        if not lower_is_better:
            return evaluation(values, own, noise=noise)
        errors = evaluation([1.8 - value for value in values], own, noise=noise)
        return errors.model_copy(update={"higher_is_better": False, "metric": "mae"})

    evaluations = {"north": of([0.9, 0.1, 0.5, *north], 0, 0.2), "south": of([0.3, 0.9, 0.8, *south], 1)}
    assert choose(CANDIDATES, evaluations, requester="north").chosen == chosen


def test_a_sure_loss_of_next_to_nothing_is_none() -> None:
    def chosen(north: float) -> str:
        evaluations = {
            "north": evaluation([0.9, 0.1, 0.5, 0.6, north], 0, noise=0.0001),
            "south": evaluation([0.3, 0.9, 0.8, 0.7, 0.9], 1),
        }
        return choose(CANDIDATES, evaluations, requester="north").chosen

    assert chosen(0.8985) == "c04"
    assert chosen(0.897) == "c00"


def test_alone_the_best_on_own_data_is_chosen() -> None:
    choice = choose(CANDIDATES, {"north": evaluation([0.9, 0.5, 0.9, 0.91, 0.93], 0)}, requester="north")
    assert choice.chosen == "c04"


def test_ties_go_to_the_simpler_candidate() -> None:
    choice = choose(CANDIDATES, {"north": evaluation([0.9, 0.5, 0.9, 0.9, 0.9], 0)}, requester="north")
    assert choice.chosen == "c02"


def test_errors_are_better_when_lower() -> None:
    north, south = (
        evaluation(values, own).model_copy(update={"higher_is_better": False, "metric": "mae"})
        for values, own in (([0.1, 0.9, 0.3, 0.1015, 0.4], 0), ([0.9, 0.1, 0.3, 0.2, 0.05], 1))
    )
    choice = choose(CANDIDATES, {"north": north, "south": south}, requester="north")
    assert choice.chosen == "c03"
    assert choice.verdicts == {"north": "adopt", "south": "reject"}
    assert "c02" not in choice.front


def test_a_wide_interval_is_no_reason_to_give_much_away() -> None:
    north = evaluation([0.9, 0.5, 0.7, 0.89, 0.80], 0, noise=0.2)
    south = evaluation([0.3, 0.9, 0.8, 0.7, 0.9], 1)
    assert choose(CANDIDATES, {"north": north, "south": south}, requester="north").chosen == "c03"


def test_a_party_without_a_model_compares_with_the_plain_ensemble() -> None:
    choice = choose(
        CANDIDATES,
        {
            "north": evaluation([0.9, 0.5, 0.7, 0.9, 0.6], 0),
            "east": evaluation([0.5, 0.5, 0.9, 0.8, 0.7], None, noise=0.01),
        },
        requester="north",
    )
    assert choice.chosen == "c03"
    assert choice.verdicts["east"] == "reject"


@pytest.mark.parametrize(("patients", "verdict"), [(None, "adopt"), (8, "adopt"), (7, "care")])
def test_few_patients_are_too_few_for_a_verdict(patients: int | None, verdict: str) -> None:
    north, south = evaluation([0.9, 0.5, 0.9, 0.9, 0.9], 0), evaluation([0.2, 0.9, 0.9, 0.9, 0.8], 1)
    test = south.splits["test"].model_copy(update={"patients": patients})
    south = south.model_copy(update={"splits": {**south.splits, "test": test}})
    assert choose(CANDIDATES, {"north": north, "south": south}, requester="north").verdicts["south"] == verdict


def test_without_the_requester_there_is_no_choice() -> None:
    with pytest.raises(SutureError, match="requester") as raised:
        choose(CANDIDATES, {"south": evaluation([1, 1, 1, 1, 1], 1)}, requester="north")
    assert raised.value.code == "evaluation.missing"


def test_an_evaluation_that_leaves_candidates_out_is_refused() -> None:
    with pytest.raises(SutureError) as raised:
        choose(CANDIDATES, {"north": evaluation([1, 1, 1, 1], 0)}, requester="north")
    assert raised.value.code == "evaluation.incomplete"


def test_the_page_states_the_rule_as_it_is():
    page = (Path(__file__).parents[2] / "docs/stitching.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d\. \*\*.*\(`(\w+)`\)", page, re.MULTILINE)
    assert steps == [keep.__name__ for keep in RULE]
    for field in fields(Thresholds):
        value = getattr(THRESHOLDS, field.name)
        text = f"{value:g}" if value >= 1 else f"{value * 100:g} %"
        assert f"| `{field.name}` | {text} |" in page
