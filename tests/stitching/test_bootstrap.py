"""Intervals against a plain loop, their coverage, and that differences are paired."""

from __future__ import annotations

import numpy as np

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
