"""An evaluation says of how many patients its samples are: of a split, of a class, and of what the own model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.stitching.networks import LABELS, dataset, images

from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_stitching.data.arrays import ArrayDataset
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.contribute import contribute, placements
from suture_stitching.fitting.fit import FitOptions, Member, fit

QUICK = FitOptions(refine=False, max_matches=1)


def grouped() -> tuple[ArrayDataset, np.ndarray, np.ndarray, np.ndarray]:
    """Return a dataset with four samples of each patient, with its labels, splits and groups."""
    x, y = images(160, seed=3)
    groups = np.array([f"p{i // 4}" for i in range(160)])
    splits = np.repeat(["train", "validation", "test"], [80, 40, 40])
    return ArrayDataset(x, y, LABELS, split=list(splits), groups=list(groups)), np.asarray(y), splits, groups


def test_patients_are_counted_beside_samples(pair: list[Member], tmp_path: Path) -> None:
    own, labels, splits, groups = grouped()
    found = evaluate(pair, fit(pair, own, own=0, options=QUICK), own, own=0)
    for split, scores in found.splits.items():
        assert (scores.n, scores.patients) == (40, 10)
        for index, one in scores.classes.items():
            having = groups[(splits == split) & (labels == int(index))]
            assert (one.n, one.patients) == (len(having), len(set(having)))
    assert found.train is not None
    assert (found.train.n, found.train.patients) == (80, 20)


def test_frames_of_a_patient_make_no_interval_narrower(pair: list[Member]) -> None:
    x, y = images(48, seed=4)
    split = np.repeat(["train", "validation", "test"], [16, 8, 24])
    alone = ArrayDataset(x, y, LABELS, split=list(split))
    frames = {"inputs": np.repeat(x, 5, axis=0), "targets": np.repeat(y, 5), "split": list(np.repeat(split, 5))}
    videos = ArrayDataset(**frames, labels=LABELS, groups=[f"p{i // 5}" for i in range(240)])
    fitted = fit(pair, alone, own=0, options=QUICK)
    once, often = (evaluate(pair, fitted, own, own=0) for own in (alone, videos))
    for name, scores in often.splits.items():
        assert (scores.n, scores.patients) == (5 * once.splits[name].n, once.splits[name].patients)
        for id, score in scores.scores.items():
            one = once.splits[name].scores[id]
            assert score.difference is not None
            assert one.difference is not None
            compared = [(score.against[other], one.against[other]) for other in score.against]
            for a, b in ((score, one), (score.difference, one.difference), *compared):
                assert np.allclose([a.value, a.low, a.high], [b.value, b.low, b.high], atol=1e-9)


def test_without_groups_every_sample_is_a_patient(pair: list[Member]) -> None:
    own = dataset()
    found = evaluate(pair, fit(pair, own, own=0, options=QUICK), own, own=0)
    for scores in found.splits.values():
        assert scores.patients == scores.n
        assert all(one.patients == one.n for one in scores.classes.values())


def test_a_fit_with_noise_refuses_contributions_before_it_looks_at_data(pair: list[Member]) -> None:
    asked = placements(fit(pair, dataset(), own=0, options=QUICK).candidates)
    given = contribute(pair, dataset(seed=9), asked, min_patients=1)

    def looked(_progress: object) -> None:
        raise AssertionError("it began")

    noise = Privacy(epsilon=8, delta=1e-5)
    with pytest.raises(SutureError) as refused:
        fit(pair, dataset(), own=0, options=QUICK, contributions=[given], privacy=noise, progress=looked)
    assert refused.value.code == "privacy.contributions"
