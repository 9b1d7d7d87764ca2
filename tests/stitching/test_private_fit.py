"""Private fits: one account, noise drawn once, patients who count as one, and nothing told by an error."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, dataset, images, same_fit, same_weights

from suture_contract.contributions import ClippedPrivacy
from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.features.moments import Moments
from suture_stitching.fitting import private_stitches
from suture_stitching.fitting.contribute import _noisy
from suture_stitching.fitting.fit import FitOptions, fit, fit_share
from suture_stitching.fitting.private_rows import Rows, read_rows
from suture_stitching.privacy.account import Account, noise_of
from suture_stitching.privacy.noise import normal
from suture_stitching.privacy.scale import BINS, clip_of, clipped, counts
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.shards import Share

#: Without noise stitches are trained, too: what is asked here needs no more than a little of that.
OPTIONS = FitOptions(alphas=(0.5,), refine_steps=6)
SOME = Privacy(epsilon=8, delta=1e-5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (2.0, 1e-5), (8.0, 1e-3)])
def test_all_questions_together_keep_the_promise(epsilon: float, delta: float) -> None:
    """The privacy loss of Gaussian questions is normal: its tail is what the definition bounds."""
    account = Account(Privacy(epsilon=epsilon, delta=delta), Checkpoint(None, ""))
    shares = [0.06, 0.14, 0.06, 0.6, 0.14]
    mu = math.sqrt(sum((3.0 / account.deviation(share, 3.0)) ** 2 for share in shares))
    loss = np.linspace(epsilon, mu**2 / 2 + 40 * mu, 400_001)
    density = np.exp(-((loss - mu**2 / 2) ** 2) / (2 * mu**2)) / (mu * math.sqrt(2 * math.pi))
    spent = np.trapezoid((1 - np.exp(epsilon - loss)) * density, loss)
    assert spent == pytest.approx(delta, rel=1e-3)
    assert 1 / mu == pytest.approx(noise_of(epsilon, delta, 1.0))


def test_nothing_is_asked_beyond_the_account() -> None:
    account = Account(SOME, Checkpoint(None, ""), share=0.5)
    account.ask("one", torch.zeros(3), 0.3, 1.0)
    with pytest.raises(ValueError, match="more than the account"):
        account.ask("two", torch.zeros(3), 0.3, 1.0)


def test_noise_is_drawn_once_for_a_question(tmp_path: Path) -> None:
    answers = [Account(SOME, Checkpoint(tmp_path, "key")).ask("one", torch.zeros(5), 1.0, 1.0) for _ in range(2)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], Account(SOME, Checkpoint(None, "")).ask("one", torch.zeros(5), 1.0, 1.0))


def test_noise_comes_from_no_generator_that_somebody_could_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own has 32 bits of a seed: whoever knows a few numbers tries them all, and takes the noise away."""

    class OneSeed(torch.Generator):
        def manual_seed(self, _: int) -> torch.Generator:
            return super().manual_seed(0)

    monkeypatch.setattr(torch, "Generator", OneSeed)
    exact = {(0, (), "train"): Moments.of(torch.eye(3, dtype=torch.float64))}
    for ask in (
        lambda: Account(SOME, Checkpoint(None, "")).ask("one", torch.zeros(20), 1.0, 1.0),
        lambda: _noisy(exact, ClippedPrivacy(epsilon=8, delta=1e-5, clips=(1.0,)))[0, (), "train"].mean,
    ):
        drawn = []
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                np.random.seed(0)
                drawn.append(ask())
        assert not torch.equal(*drawn)


def test_noise_is_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same random bits every time: all shares, and the ends, which a promise of so small a delta needs."""
    monkeypatch.setattr(os, "urandom", lambda count: hashlib.shake_256(b"noise").digest(count))
    drawn = normal((200, 500)).flatten()
    limits = torch.linspace(-3, 3, 13, dtype=torch.float64)
    below = (drawn[:, None] < limits).double().mean(0)
    assert torch.allclose(below, torch.special.ndtr(limits), atol=0.006)  # four deviations of a share of 100,000
    for bits, value in ((0, 9.16), (1, -9.16), (2**64 - 1, 0.0), (2**64 - 2, 0.0)):
        monkeypatch.setattr(os, "urandom", lambda _, bits=bits: bits.to_bytes(8, "little"))
        assert float(normal((1,))) == pytest.approx(value, abs=0.01)


def test_a_fit_that_is_killed_and_called_again_tells_the_same(pair: list[Member], tmp_path: Path) -> None:
    fits = [fit(pair, dataset(), options=OPTIONS, own=0, privacy=SOME, checkpoint=tmp_path) for _ in range(2)]
    assert same_fit(*fits)
    assert not same_weights(fits[0], fit(pair, dataset(), options=OPTIONS, own=0, privacy=SOME))
    # Other terms are other questions.
    other = fit(pair, dataset(), options=OPTIONS, own=0, privacy=SOME, share=0.5, checkpoint=tmp_path)
    assert not same_weights(fits[0], other)


def test_any_number_of_workers_tells_the_same(pair: list[Member], tmp_path: Path) -> None:
    first = fit(pair, dataset(), options=OPTIONS, own=0, privacy=SOME, checkpoint=tmp_path)
    for index in range(3):
        fit_share(
            pair, dataset(), "capture", Share(index, 3), own=0, privacy=SOME, options=OPTIONS, checkpoint=tmp_path
        )
    assert same_fit(first, fit(pair, dataset(), options=OPTIONS, own=0, privacy=SOME, checkpoint=tmp_path))


def test_what_is_told_says_what_it_promises(pair: list[Member]) -> None:
    found = fit(pair, dataset(), options=OPTIONS, own=1, privacy=SOME)
    assert found.candidates.privacy == SOME
    assert fit(pair, dataset(), options=OPTIONS).candidates.privacy is None
    assert {point for one in found.candidates.candidates if one.gate for point in one.gate.points} == {"1"}
    assert not any(one.refined for one in found.candidates.candidates)
    assert any(one.kind == "stitched" for one in found.candidates.candidates)
    evaluate(pair, found, dataset(), own=1)


def test_with_much_data_and_little_noise_it_is_the_exact_map(
    pair: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_stitches.Account, "deviation", lambda self, share, sensitivity: 1e-9)  # type: ignore[attr-defined]
    data = dataset(n=400)
    found = fit(pair, data, options=OPTIONS, own=0, privacy=SOME)
    match = next(one for one in found.candidates.candidates if one.kind == "stitched").matches[0]
    x = torch.cat([next(data.batches(split, 1000))[0] for split in ("train", "validation")])
    source = pair[0].model.features([match.points["0"]], x)[match.points["0"]]
    target = pair[1].model.features([match.points["1"]], x)[match.points["1"]]
    assert source.dim() == target.dim() == 2
    given = source @ found.stitches["p00.0_1.weight"].T + found.stitches["p00.0_1.bias"]
    side = torch.cat([source, torch.ones(len(source), 1)], 1).double()
    best = side @ torch.linalg.lstsq(side, target.double()).solution
    total = (target - target.mean(0)).square().sum()
    lost = ((given - target).square().sum() - (best - target).square().sum()) / total
    assert 0 <= lost < 0.05


def test_a_patient_counts_as_one_however_many_samples() -> None:
    norms = torch.tensor([[1.0], [1.0], [1.0], [64.0]])
    found = counts(norms, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))
    assert found.sum() == pytest.approx(2)
    assert sorted(found[found > 0].tolist()) == pytest.approx([1, 1])
    assert len(found) == BINS


def test_one_patient_moves_no_sum_by_more_than_its_sensitivity(pair: list[Member], monkeypatch: Any) -> None:
    """With a patient who has many samples and is extreme, and with these counting as nothing."""
    x, y = images(60)
    x[:20] *= 1e4
    groups = ["one"] * 20 + [f"p{index}" for index in range(40)]
    split = {"train": np.arange(50), "validation": np.arange(50, 55), "test": np.arange(55, 60)}
    data = ArrayDataset(x, y, LABELS, split=split, groups=groups)
    assert (data.patients("train"), data.patients("validation")) == (31, 5)
    told: dict[str, torch.Tensor] = {}
    moved: dict[str, float] = {}

    class Watched(Account):
        """Gives the first answer again, so that later questions are the same for both."""

        def ask(self, name: str, answer: torch.Tensor, share: float, sensitivity: float) -> torch.Tensor:
            first = told.setdefault(name, answer.clone())
            moved[name] = float((answer - first).norm()) / sensitivity
            return first

    def without(*given: Any) -> Rows:
        rows = read_rows(*given)
        assert rows.weights[:20].sum() == pytest.approx(1)
        return replace(rows, weights=torch.cat([torch.zeros(20), rows.weights[20:]]))

    monkeypatch.setattr("suture_stitching.fitting.fit.Account", Watched)
    fit(pair, data, options=OPTIONS, own=0, privacy=SOME)
    monkeypatch.setattr(private_stitches, "read_rows", without)
    fit(pair, data, options=OPTIONS, own=0, privacy=SOME)
    assert moved.keys() == {"sizes", "means", "deviations", "moments", "distances"}
    assert all(0.1 < one <= 1 + 1e-6 for one in moved.values()), moved


def test_nothing_is_told_but_the_answers_of_the_account(pair: list[Member], monkeypatch: Any) -> None:
    """With the same answers, patients who are different in everything but their number make no difference."""
    x, y = images(90)
    split = np.array(["train", "validation", "test"])[np.arange(90) % 3].tolist()
    groups = [f"p{index // 6}{index % 3}" for index in range(90)]
    others = 7 - 40 * x[::-1] ** 3
    others[5] = 3e38
    sites = [
        ArrayDataset(inputs, targets, LABELS, split=split, groups=groups)
        for inputs, targets in ((x, y), (others, (y * 2 + 1) % len(LABELS)))
    ]
    answers: dict[str, torch.Tensor] = {}

    class Same(Account):
        def ask(self, name: str, answer: torch.Tensor, share: float, sensitivity: float) -> torch.Tensor:
            return answers.setdefault(name, super().ask(name, answer, share, sensitivity))

    monkeypatch.setattr("suture_stitching.fitting.fit.Account", Same)
    monkeypatch.setattr("suture_stitching.evaluation.private_scores.Account", Same)
    # So little noise that every answer matters.
    little = Privacy(epsilon=50, delta=0.01)
    fits = [fit(pair, site, options=OPTIONS, own=0, privacy=little) for site in sites]
    assert same_fit(*fits)
    measured = [
        evaluate(pair, fits[0], site, own=0, privacy=little, metrics=("auroc", "calibration_curve")) for site in sites
    ]
    assert measured[0] == measured[1]
    assert answers.keys() == {"sizes", "means", "deviations", "moments", "distances", "scores"}


def test_a_sample_that_overflows_is_not_told_of(pair: list[Member]) -> None:
    x, y = images(60)
    x[3] = 3e38
    split = {"train": np.arange(50), "validation": np.arange(50, 55), "test": np.arange(55, 60)}
    data = ArrayDataset(x, y, LABELS, split=split)
    with pytest.raises(SutureError, match="NaN"):
        fit(pair, data, options=OPTIONS, own=0)
    found = fit(pair, data, options=OPTIONS, own=0, privacy=SOME)
    assert all(torch.isfinite(tensor).all() for tensor in found.stitches.values())


def test_sizes_come_from_full_bins() -> None:
    norms = torch.full((100, 1), 3.0)
    norms[0] = 1e6
    clip = clip_of(counts(norms, torch.ones(100)), 100, deviation=1.0)
    assert 3 <= clip <= 3 * math.sqrt(2)
    rows = clipped(torch.tensor([[3.0, 0.0], [1e6, 0.0], [float("nan"), 1.0]]), clip)
    assert rows.norm(dim=1).max() <= 1 + 1e-9
    assert rows[2].tolist() == [0, 0]
    # Whoever asks for moments says the clip: however small it is, no row betrays itself by NaN.
    tiny = clipped(torch.tensor([[3e38, -3e38], [1.0, 0.0], [0.0, 0.0]]), 1e-300)
    assert tiny.norm(dim=1).tolist() == pytest.approx([1, 1, 0])


def test_noise_far_from_patients_is_no_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        norms = 7 * torch.exp(0.4 * torch.randn(630, 1, generator=generator))
        noise = 11 * torch.randn(BINS, generator=generator, dtype=torch.float64)
        clip = clip_of(counts(norms, torch.ones(630)) + noise, 630, deviation=11)
        assert 0.5 < clip / float(norms.quantile(0.95)) < 4


def test_noise_far_from_patients_is_no_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        squared = torch.randn(200, 8, generator=generator).square().mean(1)
        place = private_stitches._place(squared)
        exact = torch.zeros(private_stitches._DISTANCES, dtype=torch.float64)
        exact.index_add_(0, place, torch.ones(200, dtype=torch.float64))
        noise = 4 * torch.randn(len(exact), generator=generator, dtype=torch.float64)
        limit = private_stitches._limit(exact + noise, 200, deviation=4)
        assert 0.5 < limit / float(squared.quantile(0.95)) < 2


def test_where_noise_hides_distances_they_are_the_usual_ones() -> None:
    noise = torch.randn(48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert private_stitches._limit(40 * noise, 60, deviation=40) == 2


def test_cells_filled_from_other_patients_are_refused(pair: list[Member]) -> None:
    data = dataset()
    data.filled = True
    fitted = fit(pair, data, options=OPTIONS, own=0)
    for work in (
        lambda: fit(pair, data, options=OPTIONS, own=0, privacy=SOME),
        lambda: evaluate(pair, fitted, data, own=0, privacy=SOME),
    ):
        with pytest.raises(SutureError) as caught:
            work()
        assert caught.value.code == "privacy.filled"


def test_metrics_with_noise_are_means_over_patients(pair: list[Member], monkeypatch: Any) -> None:
    x, y = images(120)
    groups = [f"p{index // 2}" for index in range(120)]
    data = ArrayDataset(x, y, LABELS, groups=groups)
    fitted = fit(pair, data, options=OPTIONS, own=0)
    exact = evaluate(pair, fitted, data, own=0)
    noisy = evaluate(pair, fitted, data, own=0, privacy=SOME)
    assert (exact.privacy, noisy.privacy) == (None, SOME)
    assert (noisy.training, noisy.train) == (None, None)
    for split, told in noisy.splits.items():
        assert told.classes == {}
        assert all(score.calibration is None for score in told.scores.values())
        assert any(abs(told.scores[id].value - one.value) > 1e-3 for id, one in exact.splits[split].scores.items())
    monkeypatch.setattr("suture_stitching.evaluation.private_scores.Account.deviation", lambda *_: 1e-9)
    still = evaluate(pair, fitted, data, own=0, privacy=SOME)
    for split, told in still.splits.items():
        assert told.n == exact.splits[split].n
        for id, score in told.scores.items():
            # Two samples each: the mean over patients is that over samples.
            assert score.value == pytest.approx(exact.splits[split].scores[id].value, abs=1e-6)
            assert score.low <= score.value <= score.high
