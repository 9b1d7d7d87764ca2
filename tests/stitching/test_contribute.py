"""Moments of another party: what they are, what a fit makes of them, and what noise promises."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, SHAPE, dataset, images, member
from torch import nn

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import ArrayDataset
from suture_stitching.ensemble import members
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.features.moments import Moments, rows
from suture_stitching.fitting.contribute import ClippedPrivacy, Contribution, contribute, noise_of, placements
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit, matches
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.progress import Progress

QUICK = FitOptions(refine=False, max_matches=2)


@pytest.fixture(scope="module")
def fitted(pair: list[Member]) -> FitResult:
    return fit(pair, dataset(), own=0, options=QUICK)


@pytest.fixture(scope="module")
def given(pair: list[Member], fitted: FitResult) -> Contribution:
    return contribute(pair, dataset(seed=9), placements(fitted.candidates), min_patients=1)


def test_moments_are_those_of_the_features(pair: list[Member], fitted: FitResult, given: Contribution) -> None:
    data = dataset(seed=9)
    points = fitted.points(pair)
    found = {m: points[m][name] for m, name in ((int(k), v) for k, v in given.described.placements[0].items())}
    x = torch.cat([x for x, _ in data.batches("train", 64)])
    grid = next(grid for place, grid, _ in given.moments if place == 0)
    sides = [rows(pair[m].model.features([p.name], x)[p.name], grid, p.channel_axis) for m, p in found.items()]
    features = torch.cat(sides, 1).double()
    train, validation = given.pair(found, grid) or (None, None)
    assert train is not None
    assert validation is not None
    assert train.n == data.n("train")
    assert validation.n == data.n("validation")
    assert torch.allclose(train.mean, features.mean(0), atol=1e-5)
    assert torch.allclose(train.covariance, features.T.cov(correction=0), atol=1e-4)


def test_a_file_gives_back_what_was_saved(given: Contribution, tmp_path: Path) -> None:
    given.save(tmp_path / "moments.safetensors")
    again = Contribution.load(tmp_path / "moments.safetensors")
    assert again.described == given.described
    assert again.moments.keys() == given.moments.keys()
    for key, one in given.moments.items():
        assert again.moments[key].n == one.n
        torch.testing.assert_close(again.moments[key].mean, one.mean, rtol=1e-6, atol=1e-30)
        # One half of it is saved: on some processors, the other differs by rounding.
        scatter = again.moments[key].scatter
        torch.testing.assert_close(scatter.triu(), one.scatter.triu(), rtol=1e-6, atol=1e-30)
        assert torch.equal(scatter, scatter.T)


def test_a_contribution_goes_on_where_it_was_killed(
    pair: list[Member], fitted: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_LARGEST_BATCH", 16)
    monkeypatch.setattr(Checkpoint, "due", True)
    asked, seen = placements(fitted.candidates), list[Progress]()

    def killed(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    whole = contribute(pair, dataset(seed=9), asked, min_patients=1)
    with pytest.raises(KeyboardInterrupt):
        contribute(pair, dataset(seed=9), asked, min_patients=1, checkpoint=tmp_path, progress=killed)
    again = contribute(pair, dataset(seed=9), asked, min_patients=1, checkpoint=tmp_path, progress=seen.append)
    assert seen[0].done == 3
    assert seen[-1].done == seen[-1].total
    assert again.moments.keys() == whole.moments.keys()
    assert all(torch.equal(again.moments[key].scatter, one.scatter) for key, one in whole.moments.items())


def test_what_is_asked_for_is_where_the_fit_joins(pair: list[Member], fitted: FitResult) -> None:
    assert sorted(matches(pair, dataset(), options=QUICK), key=str) == sorted(placements(fitted.candidates), key=str)


def test_moments_that_no_data_have_are_left_out(pair: list[Member], fitted: FitResult, given: Contribution) -> None:
    mad = Contribution(
        given.described, {key: Moments(m.n, m.mean, 1e9 * m.scatter) for key, m in given.moments.items()}
    )
    assert fit(pair, dataset(), own=0, options=QUICK, contributions=[mad]).candidates == fitted.candidates


def test_a_damaged_file_is_refused(given: Contribution, tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    given.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SutureError) as caught:
        Contribution.load(path)
    assert caught.value.code == "moments.invalid"


def test_a_fit_offers_candidates_that_weigh_the_moments(
    pair: list[Member], fitted: FitResult, given: Contribution
) -> None:
    again = fit(pair, dataset(), own=0, options=QUICK, contributions=[given])
    own = len(fitted.candidates.candidates)
    assert again.candidates.candidates[:own] == fitted.candidates.candidates
    weighed = again.candidates.candidates[own:]
    assert len(weighed) >= 4
    assert all(one.kind == "stitched" and one.others in (0.25, 0.5, 0.75) for one in weighed)
    scores = evaluate(pair, again, dataset(seed=9)).splits["test"].scores
    assert scores.keys() == {one.id for one in again.candidates.candidates}
    x, _ = next(dataset().batches("test", 8))
    assert bool(torch.isfinite(compose(pair, again, weighed[0].id)(x)).all())


def test_own_moments_of_the_same_data_change_nothing(pair: list[Member], fitted: FitResult) -> None:
    same = contribute(pair, dataset(), placements(fitted.candidates), min_patients=1)
    again = fit(pair, dataset(), own=0, options=QUICK, contributions=[same], min_patients=1)
    weighed = next(one for one in again.candidates.candidates if one.others)
    native = next(
        one.matches[0]
        for one in fitted.candidates.candidates
        if len(one.matches) == 1 and not one.gate and one.matches[0].points == weighed.matches[0].points
    )
    for ours, theirs in zip(native.stitches, weighed.matches[0].stitches, strict=True):
        assert torch.allclose(again.stitches[ours.weight], again.stitches[theirs.weight], rtol=2e-2, atol=1e-2)


def test_too_few_samples_other_models_and_unknown_places_are_refused(
    pair: list[Member], fitted: FitResult, given: Contribution
) -> None:
    asked = placements(fitted.candidates)
    for code, call in {
        "moments.too_few_samples": lambda: contribute(pair, dataset(), asked, min_patients=10_000),
        "moments.placements": lambda: contribute(pair, dataset(), [{"0": "n99999", "1": "n1"}]),
        "moments.members": lambda: fit(pair[::-1], dataset(), own=0, options=QUICK, contributions=[given]),
        "moments.clips": lambda: contribute(
            pair, dataset(), asked, privacy=ClippedPrivacy(epsilon=1, delta=1e-5, clips=(1.0,) * (len(asked) + 1))
        ),
    }.items():
        with pytest.raises(SutureError) as caught:
            call()
        assert caught.value.code == code


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_noise_is_just_enough(epsilon: float) -> None:
    """delta(sigma) by numerical integration of the privacy loss of two shifted normal distributions."""

    def delta(sigma: float) -> float:
        x = np.linspace(-40 * sigma, 40 * sigma, 400_001)
        p, q = (np.exp(-((x - shift) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) for shift in (0.0, 3.0))
        return float(np.clip(p - math.exp(epsilon) * q, 0, None).sum() * (x[1] - x[0]))

    sigma = noise_of(epsilon, 1e-4, 3.0)
    assert delta(sigma) == pytest.approx(1e-4, rel=0.02)
    assert delta(0.9 * sigma) > 1.1e-4


def test_no_two_samples_are_farther_apart_than_the_noise_allows_for() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(2000, 2, generator=generator), dim=1) for _ in range(2))
    products = torch.einsum("ni,nj->nij", x, x) - torch.einsum("ni,nj->nij", y, y)
    distance = ((x - y).square().sum(1) + products.square().sum((1, 2))).sqrt()
    assert float(distance.max()) <= math.sqrt(4.5) + 1e-5
    assert float(distance.max()) > math.sqrt(4.5) - 1e-2


class _Mixing(nn.Module):
    """Lets every sample of a batch depend on all others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(math.prod(SHAPE), 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(torch.relu(self.first(x + 100 * x.mean(0, keepdim=True))))


def test_noise_protects_from_networks_that_mix_samples_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the noise: replacing one sample moves all sums by no more than the noise is made for."""
    monkeypatch.setattr("suture_stitching.fitting.contribute._noisy", lambda moments, _: moments)
    # Our export refuses such a network; whoever wrote the file did not ask it.
    monkeypatch.setattr("suture_stitching.portable.export.check_sane", lambda *_: None)
    mixing = [member(_Mixing(), tmp_path, seed=1), member(_Mixing(), tmp_path, "south/net", seed=2)]
    x, y = images()
    split = np.array(["train", "validation", "test"])[np.arange(len(x)) % 3]
    other = x.copy()
    other[0] = 3 - 50 * other[0]
    point = mixing[0].points(SHAPE)[0].name
    sums = []
    for inputs in (x, other):
        data = ArrayDataset(inputs, y, LABELS, split=split.tolist())
        found = contribute(
            mixing, data, [{"0": point, "1": point}], privacy=ClippedPrivacy(epsilon=1, delta=1e-5, clips=(1.0,))
        )
        one = next(moments for (_, _, split_), moments in found.moments.items() if split_ == "train")
        sums.append(one.n * torch.cat([one.mean[None], one.covariance + torch.outer(one.mean, one.mean)]))
    assert 0.1 < float((sums[0] - sums[1]).square().sum().sqrt()) <= math.sqrt(4.5) + 1e-4


def test_noisy_moments_are_noisy_and_still_moments(pair: list[Member], fitted: FitResult, given: Contribution) -> None:
    asked = placements(fitted.candidates)
    privacy = ClippedPrivacy(epsilon=50, delta=0.01, clips=given.norms())
    first, second = (contribute(pair, dataset(seed=9), asked, privacy=privacy) for _ in range(2))
    assert first.described.privacy == privacy
    for key, one in first.moments.items():
        assert not torch.equal(one.mean, second.moments[key].mean)
        assert float(torch.linalg.eigvalsh(one.scatter).min()) > -1e-6 * float(one.scatter.diagonal().sum() + 1)
    fit(pair, dataset(), own=0, options=QUICK, contributions=[first])
