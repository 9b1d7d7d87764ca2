"""Patients are divided anew whole, and what is taken of them is what a rule would take."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import few_patients
from few_patients import Samples


def test_patients_are_divided_anew_as_a_whole() -> None:
    """A sample's score says whose it is."""
    validation = Samples(np.array([[0.0, 0, 1, 1]]), np.array([0, 0, 1, 1]))
    test = Samples(np.array([[2.0, 3, 3, 4]]), np.array([0, 1, 1, 2]))
    seen = set()
    for seed in range(20):
        here, there = few_patients.divided_anew((validation, test), 2, np.random.default_rng(seed))
        assert sorted([*here.scores[0], *there.scores[0]]) == [0, 0, 1, 1, 2, 3, 3, 4]
        assert not set(here.scores[0]) & set(there.scores[0])
        assert (here.patients, there.patients) == (2, 3)
        assert [len(set(here.scores[0][here.whose == one])) for one in range(2)] == [1, 1]
        seen.add(tuple(sorted(set(here.scores[0]))))
    assert len(seen) > 5


def test_who_weighs_more_decides() -> None:
    """At home the third loses a little, elsewhere it is best: 1 patient there against 100 here."""
    home = Samples(np.repeat([[0.9], [0.9], [0.86]], 100, axis=1), np.arange(100))
    away = Samples(np.array([[0.2], [0.5], [0.6]]), np.arange(1))
    pool = few_patients.keeping_up(home, 0, seed=0)
    assert pool == [1]  # the third surely loses
    parties = [(home, home), (away, away)]
    weights = few_patients.WEIGHTS
    assert few_patients.worth(parties, [1, 2], 0, weights["alike"]) == pytest.approx([0, -4])
    assert few_patients.worth(parties, [1, 2], 0, weights["root"]) == pytest.approx([3, 0])
    assert few_patients.worth(parties, [1, 2], 0, weights["saturating"]) == pytest.approx([3, 0])
