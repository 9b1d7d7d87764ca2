"""Shares of a fit and of an evaluation: whoever does them, and however many, the result is the same to the last bit."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stitching.networks import dataset, same_fit

from suture_contract.errors import Cancelled, SutureError
from suture_stitching.data import Dataset
from suture_stitching.ensemble import members
from suture_stitching.evaluation import evaluate
from suture_stitching.fitting import fit
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit_share
from suture_stitching.running.progress import Progress
from suture_stitching.running.shards import MOST_BLOCKS, Share, blocks, dealt

OPTIONS = FitOptions(refine_steps=6, refine_candidates=2, max_matches=2)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_LARGEST_BATCH", 4)


@pytest.fixture(scope="module")
def whole(pair: list[Member]) -> FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_LARGEST_BATCH", 4)
        return fit.fit(pair, dataset(), own=0, options=OPTIONS)


def share_all(pair: list[Member], data: Dataset, count: int, folder: Path, **changes: Any) -> None:
    for step in ("capture", "refine"):
        for index in reversed(range(count)):
            fit_share(pair, data, step, Share(index, count), own=0, options=OPTIONS, checkpoint=folder, **changes)


def nothing_left_to_read(patch: pytest.MonkeyPatch) -> None:
    def again(*_arguments: object, **_named: object) -> None:
        raise AssertionError("done again")

    patch.setattr(fit, "refine", again)
    patch.setattr("suture_stitching.running.device.Runner.parts", again)
    patch.setattr("suture_stitching.fitting.fit.best_at_home", lambda *_: 0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_a_fit_give_the_same_bits(
    pair: list[Member], whole: FitResult, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset()
    assert len(blocks(-(-data.n("train") // 4))) == 3
    share_all(pair, data, count, tmp_path)
    again = fit.fit(pair, data, own=0, options=OPTIONS, checkpoint=tmp_path)
    assert again.candidates == whole.candidates
    assert same_fit(again, whole)
    nothing_left_to_read(monkeypatch)
    share_all(pair, data, count, tmp_path)


def test_the_whole_finds_what_the_shares_did_and_does_the_rest(
    pair: list[Member], whole: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, seen = tmp_path / "half", []
    fit_share(pair, dataset(), "capture", Share(1, 2), own=0, options=OPTIONS, checkpoint=half)
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=half, progress=seen.append), whole)
    totals = {one.step: one.total for one in seen}
    reported = sum(one.step == "solve" for one in seen)
    assert reported < totals["solve"] * 0.75

    share_all(pair, dataset(), 2, tmp_path / "all")
    nothing_left_to_read(monkeypatch)
    found = fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path / "all")
    assert all(
        torch.equal(whole.stitches[name], tensor) for name, tensor in found.stitches.items() if name in whole.stitches
    )


def test_a_share_that_was_stopped_does_not_count(pair: list[Member], whole: FitResult, tmp_path: Path) -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == "solve" and progress.done >= 7:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_share(pair, dataset(), "capture", Share(0, 2), own=0, options=OPTIONS, checkpoint=tmp_path, progress=cancel)
    assert list(tmp_path.glob("reading-train-0.*"))
    fit_share(pair, dataset(), "capture", Share(1, 2), own=0, options=OPTIONS, checkpoint=tmp_path)
    assert same_fit(fit.fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)


def test_a_share_reports_its_own_units_only(pair: list[Member], tmp_path: Path) -> None:
    totals = []
    for index in range(2):
        seen: list[Progress] = []
        share = Share(index, 2)
        fit_share(pair, dataset(), "capture", share, own=0, options=OPTIONS, checkpoint=tmp_path, progress=seen.append)
        (total,) = {one.total for one in seen if one.step == "solve"}
        assert seen[-1].done == total
        totals.append(total)
    data = dataset()
    assert sum(totals) == sum(-(-data.n(split) // 4) for split in ("train", "validation"))
    assert max(totals) < 0.7 * sum(totals)


def test_a_share_tells_of_a_model_that_gives_nan(pair: list[Member], tmp_path: Path) -> None:
    data = dataset()
    data._inputs = np.where(np.arange(len(data._inputs)).reshape(-1, 1, 1, 1) % 7, data._inputs, np.nan)
    with pytest.raises(SutureError) as caught:
        fit_share(pair, data, "capture", Share(1, 2), own=0, options=OPTIONS, checkpoint=tmp_path)
    assert (caught.value.code, caught.value.where) == ("features.not_finite", "north/net")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_an_evaluation_give_the_same_scores(
    pair: list[Member], whole: FitResult, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate.evaluate(pair, whole, dataset(), own=0)
    for index in range(count):
        evaluate.evaluate_share(pair, whole, dataset(), Share(index, count), checkpoint=tmp_path)
    nothing_left_to_read(monkeypatch)
    # Whoever ends the task looks at a bounded number of training samples.
    monkeypatch.setattr(evaluate._Evaluation, "_on_train", lambda *_: alone.train)
    assert evaluate.evaluate(pair, whole, dataset(), own=0, checkpoint=tmp_path) == alone


def test_an_evaluation_finds_half_of_its_shares(pair: list[Member], whole: FitResult, tmp_path: Path) -> None:
    evaluate.evaluate_share(pair, whole, dataset(), Share(1, 3), checkpoint=tmp_path)
    seen: list[Progress] = []
    found = evaluate.evaluate(pair, whole, dataset(), own=1, checkpoint=tmp_path, progress=seen.append)
    assert found == evaluate.evaluate(pair, whole, dataset(), own=1)
    assert len(seen) - 1 < seen[-1].total * 0.75


@pytest.mark.parametrize("batches", [0, 1, 5, 8, 31, 32, 100, 1001])
def test_blocks_hold_every_batch_once(batches: int) -> None:
    found = blocks(batches)
    assert list(chain.from_iterable(found)) == list(range(batches))
    assert len(found) <= MOST_BLOCKS
    assert all(len(block) >= min(4, batches) for block in found)


def test_work_is_dealt_out_by_what_it_costs() -> None:
    assert dealt([3.2, 22.8, 16.0, 2.7], 2) == [[1], [0, 2, 3]]
    assert dealt([1.0, 1.0, 1.0, 1.0], 3) == [[0, 3], [1], [2]]
    assert dealt([1.0], 3) == [[0], [], []]
    assert dealt([], 2) == [[], []]
    assert dealt([2.0, 1.0, 3.0], 1) == [[0, 1, 2]]
