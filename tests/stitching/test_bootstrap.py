"""Intervals against a plain loop, their coverage, and that differences are paired."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from suture_stitching.evaluation import bootstrap


def test_intervals_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((3, 40))
    found = bootstrap.intervals(scores, [0, 2], seed=7)
    drawn = np.random.default_rng(7).integers(0, 40, size=(bootstrap.RESAMPLES, 40))
    for index, (value, differences) in enumerate(found):
        means = [scores[index][sample].mean() for sample in drawn]
        assert np.isclose(value.value, scores[index].mean())
        assert np.allclose([value.low, value.high], np.quantile(means, (0.025, 0.975)))
        assert differences.keys() == {0, 2}
        for other, difference in differences.items():
            steps = [(scores[index] - scores[other])[sample].mean() for sample in drawn]
            assert np.allclose([difference.low, difference.high], np.quantile(steps, (0.025, 0.975)))


def test_a_candidate_does_not_differ_from_itself_and_pairs_are_tight() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    scores = np.stack([(hard > 0.3), (hard > 0.31)]).astype(float)
    (_, own), (apart, other) = bootstrap.intervals(scores, [0], seed=0)
    same, paired = own[0], other[0]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert paired.high - paired.low < (apart.high - apart.low) / 2


def test_the_same_seed_gives_the_same_interval_in_pieces_too(monkeypatch) -> None:
    scores = np.random.default_rng(3).random((4, 30))
    whole = bootstrap.intervals(scores, [1], seed=5)
    assert whole == bootstrap.intervals(scores, [1], seed=5)
    assert whole != bootstrap.intervals(scores, [1], seed=6)
    monkeypatch.setattr(bootstrap, "_CELLS", 300)
    assert whole == bootstrap.intervals(scores, [1], seed=5)


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        ((interval, _),) = bootstrap.intervals((rng.random((1, 120)) < 0.8).astype(float), seed=trial)
        covered += interval.low <= 0.8 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("patients", [2, 4, 19, 20, 40])
def test_frames_that_are_alike_tell_as_much_as_one_of_each_patient(patients: int) -> None:
    rng = np.random.default_rng(6)
    single = rng.random((3, patients))
    frames = np.repeat(single, 10, axis=1)
    # Frames of a video lie side by side in no order that anyone promised.
    order = rng.permutation(frames.shape[1])
    whose = np.repeat(np.arange(patients), 10)
    first = list(dict.fromkeys(whose[order].tolist()))
    by_patient = bootstrap.intervals(frames[:, order], [0], seed=1, patients=whose[order], most=1.0)
    for found, alone in zip(by_patient, bootstrap.intervals(single[:, first], [0], seed=1, most=1.0), strict=True):
        for one, other in ((found[0], alone[0]), (found[1][0], alone[1][0])):
            assert np.allclose([one.value, one.low, one.high], [other.value, other.low, other.high], atol=1e-12)
    wrong = bootstrap.intervals(frames, [0], seed=1)[1]
    value, difference = by_patient[1][0], by_patient[1][1][0]
    assert value.high - value.low > 2 * (wrong[0].high - wrong[0].low)
    assert difference.high - difference.low > 2 * (wrong[1][0].high - wrong[1][0].low)


def test_one_sample_of_each_patient_gives_the_bits_that_samples_give() -> None:
    rng = np.random.default_rng(7)
    scores, names = rng.random((3, 37)), rng.permutation(37)
    assert bootstrap.intervals(scores, [1], seed=2, patients=names) == bootstrap.intervals(scores, [1], seed=2)


def test_patients_of_many_samples_and_few_are_drawn_whole() -> None:
    rng = np.random.default_rng(8)
    whose = np.repeat(np.arange(25), rng.integers(1, 9, 25))
    scores = rng.random((1, len(whose)))
    ((found, _),) = bootstrap.intervals(scores, seed=3, patients=whose)
    drawn = np.random.default_rng(3).integers(0, 25, size=(bootstrap.RESAMPLES, 25))
    means = [np.concatenate([scores[0][whose == one] for one in sample]).mean() for sample in drawn]
    assert np.allclose([found.low, found.high], np.quantile(means, (0.025, 0.975)))


def test_few_patients_give_intervals_that_hold_the_truth() -> None:
    t = importlib.import_module("scipy.stats").t
    assert np.allclose(bootstrap._STUDENT, t.ppf(0.975, np.arange(1, bootstrap.RESAMPLED_FROM - 1)), atol=1e-4)
    rng = np.random.default_rng(9)
    covered = 0
    for trial in range(300):
        patients = np.repeat(np.arange(5), rng.integers(5, 11, 5))
        scores = np.clip(rng.normal(0.5, 0.1, 5)[patients] + rng.normal(0, 0.05, len(patients)), 0, 1)[None]
        ((interval, _),) = bootstrap.intervals(scores, seed=trial, patients=patients, most=1.0)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.9 <= covered / 300 <= 0.99


@pytest.mark.parametrize("most", [1.0, np.inf])
def test_of_one_patient_nothing_is_known_about_others(most: float) -> None:
    scores = np.array([[0.7, 0.8, 0.9], [0.7, 0.7, 0.8]])
    (value, differences), _ = bootstrap.intervals(scores, [0, 1], seed=0, patients=np.zeros(3, np.int64), most=most)
    assert (value.low, value.high) == (0.0, 1.0) if most == 1 else value.high > 5
    assert differences[1].low < -0.5
    assert differences[1].high > 0.5
    assert (differences[0].low, differences[0].high) == (0, 0)
