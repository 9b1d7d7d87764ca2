"""What stitching is for, on real images: two parties, other digits, other scanner, other networks; north asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suture_contract.documents import Interval
from suture_contract.fit_options import FitOptions
from suture_local import digits, shipped
from suture_local.story import Target, Wanted
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.portable.runtime import load, save


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> shipped.Stage:
    return shipped.stage(digits.STORY, 0, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fitted(parties: shipped.Stage) -> FitResult:
    return shipped.fitted(parties, FitOptions(seed=0))


@pytest.fixture(scope="module")
def outcome(
    parties: shipped.Stage, fitted: FitResult, tmp_path_factory: pytest.TempPathFactory
) -> shipped.ShippedOutcome:
    return shipped.ship(parties, fitted, tmp_path_factory.mktemp("shipped"))


def test_north_keeps_its_own_and_gains_souths(outcome: shipped.ShippedOutcome) -> None:
    assert [str(target) for target in outcome.targets if not target.met] == []
    assert {party: found.verdict for party, found in outcome.report.parties.items()} == {
        "north": "adopt",
        "south": "adopt",
    }
    assert outcome.kind == "stitched"


def test_what_is_judged_is_what_was_evaluated(outcome: shipped.ShippedOutcome) -> None:
    for party, found in outcome.judged.items():
        report = outcome.report.parties[party]
        assert found.n == report.n
        for row, value in (("chosen", found.shipped), ("own", found.own), ("ensemble", found.plain)):
            assert value == pytest.approx(report.rows[row].value, abs=1 / found.n)
        assert found.over_own.value == pytest.approx(found.shipped - found.own)
        assert found.over_plain.value == pytest.approx(found.shipped - found.plain)


@pytest.fixture(scope="module")
def unrefined(parties: shipped.Stage) -> FitResult:
    return shipped.fitted(parties, FitOptions(seed=0, refine=False))


@pytest.mark.parametrize("gates", [True, False])
def test_without_refinement_the_targets_are_missed_with_gates_or_without(
    parties: shipped.Stage, unrefined: FitResult, tmp_path: Path, gates: bool
) -> None:
    bare = unrefined
    kept = [candidate for candidate in bare.candidates.candidates if gates or candidate.gate is None]
    numbered = tuple(one.model_copy(update={"id": f"c{number:02d}"}) for number, one in enumerate(kept))
    bare = replace(bare, candidates=bare.candidates.model_copy(update={"candidates": numbered}))
    assert any(one.kind == "stitched" for one in numbered)
    assert any(one.kind == "routed" for one in numbered) is gates
    found = shipped.ship(parties, bare, tmp_path)
    assert "better than routing alone at north" in missed(found)


@pytest.mark.parametrize("damage", [torch.zeros_like, lambda tensor: tensor.flip(0)])
def test_a_file_with_broken_stitches_misses_the_targets(
    parties: shipped.Stage, outcome: shipped.ShippedOutcome, tmp_path: Path, damage: object
) -> None:
    assert callable(damage)
    broken = {name: damage(tensor) for name, tensor in outcome.fitted.stitches.items()}
    chosen = outcome.fitted.candidate(outcome.report.chosen)
    stitches = {name for match in chosen.matches for one in match.stitches for name in (one.weight, one.bias)}
    mixed = {name: broken[name] if name in stitches else whole for name, whole in outcome.fitted.stitches.items()}
    composed = compose(parties.members, replace(outcome.fitted, stitches=mixed), chosen.id)
    save(composed.graph, composed.tensors, tmp_path / "broken.safetensors")
    judged = shipped.judge(
        parties.models, dict.fromkeys(parties.models, load(tmp_path / "broken.safetensors")), parties.data
    )
    assert "better than north's own model at north" in missed(replace(outcome, judged=judged))


def missed(outcome: shipped.ShippedOutcome) -> list[str]:
    return [target.what for target in outcome.targets if not target.met]


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("found", "wanted", "met"),
    [
        (interval(0.1, 0.001, 0.2), "above", True),
        (interval(0.1, 0.0, 0.2), "above", False),
        (interval(-0.1, -0.2, -0.05), "above", False),
        (interval(-0.01, -0.03, 0.0), "reaches", True),
        (interval(-0.02, -0.03, -0.01), "reaches", True),
        (interval(-0.03, -0.04, -0.01), "reaches", False),
        (interval(-0.03, -0.04, -0.01), "shown", True),
    ],
)
def test_a_target_is_met_by_its_interval(found: Interval, wanted: Wanted, met: bool) -> None:
    assert Target("better", found, wanted).met is met


def test_parties_share_no_image_and_are_the_same_for_a_seed() -> None:
    one, two = digits.parties(3), digits.parties(3)
    for party in digits.PARTIES:
        assert (one[party].inputs == two[party].inputs).all()
        assert (one[party].split == two[party].split).all()
        own = (one[party].labels < 5) == (party == "north")
        assert own.mean() == pytest.approx(digits.OWN_SHARE, abs=0.01)
        assert one[party].inputs.min() >= 0
        assert one[party].inputs.max() <= 1
    assert sum(len(data.labels) for data in one.values()) == 1797
    assert (digits.parties(4)["north"].inputs != one["north"].inputs).any()
