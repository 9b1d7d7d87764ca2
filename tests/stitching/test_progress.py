"""What a fit says of how far it is: never less than before, in units of one kind, with an estimate that holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stitching.networks import dataset, deep, member, plain

from suture_stitching.ensemble import members
from suture_stitching.fitting import refine
from suture_stitching.fitting.contribute import Contribution, contribute
from suture_stitching.fitting.fit import FitOptions, Member, fit, fit_share, matches
from suture_stitching.fitting.solve import Source
from suture_stitching.running import tracker
from suture_stitching.running.device import Runner
from suture_stitching.running.progress import Progress
from suture_stitching.running.shards import Share

STEPS = ("match", "solve", "stitch", "double", "refine", "fit")
OPTIONS = FitOptions(refine_steps=12, refine_candidates=2, max_matches=3)
BATCH = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    folder = tmp_path_factory.mktemp("members")
    return [member(plain(), folder, seed=1), member(deep(), folder, "south/net", seed=2)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_LARGEST_BATCH", BATCH)


def given(pair: Sequence[Member]) -> Contribution:
    return contribute(pair, dataset(seed=9), matches(pair, dataset(), options=OPTIONS), min_patients=1)


def totals_of(seen: Sequence[Progress]) -> dict[str, int]:
    """Return the total of each step, after checking that nothing goes back and that no total changes."""
    for before, after in pairwise(seen):
        assert STEPS.index(before.step) <= STEPS.index(after.step)
        assert before.step != after.step or before.done <= after.done
    totals = {one.step: one.total for one in seen}
    assert all(0 <= one.done <= one.total == totals[one.step] for one in seen)
    last = {one.step: one.done for one in seen}
    assert last == totals
    return totals


def test_a_fit_with_contributions_never_goes_back(pair: list[Member]) -> None:
    seen: list[Progress] = []
    data = dataset()
    fit(pair, data, own=0, options=OPTIONS, contributions=[given(pair)], progress=seen.append)
    totals = totals_of(seen)
    assert tuple(totals) == STEPS
    assert totals["solve"] == sum(-(-data.n(split) // BATCH) for split in ("train", "validation"))
    assert totals["double"] <= totals["solve"]
    # Two stitches at each of three matches: one's own, and with three shares of the other party's moments.
    assert totals["stitch"] == 2 * 3 * (1 + 3)
    assert totals["refine"] == 2 * 12


def test_shares_and_the_whole_after_them_never_go_back(pair: list[Member], tmp_path: Path) -> None:
    data, shared = dataset(), []
    for step in ("capture", "refine"):
        for index in range(2):
            seen: list[Progress] = []
            fit_share(
                pair, data, step, Share(index, 2), own=0, options=OPTIONS, checkpoint=tmp_path, progress=seen.append
            )
            shared.append(totals_of(seen))
    assert [tuple(totals) for totals in shared] == [("match", "solve")] * 2 + [STEPS[:-1]] * 2
    seen = []
    fit(pair, data, own=0, options=OPTIONS, contributions=[given(pair)], checkpoint=tmp_path, progress=seen.append)
    whole = totals_of(seen)
    assert sum(totals["solve"] for totals in shared[:2]) == whole["solve"]
    assert sum(totals["refine"] for totals in shared[2:]) == whole["refine"]
    assert [totals["stitch"] for totals in shared[2:]] == [2 * 3, 2 * 3]


class Clock:
    """A clock that only the work moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def costs(self, work: Callable[..., Any], seconds: Callable[..., float]) -> Callable[..., Any]:
        """Return `work`, which takes so many seconds by this clock, by its arguments."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self.now += seconds(*arguments)
            return work(*arguments, **named)

        return timed


@pytest.mark.parametrize(("behind", "stitch"), [(0.2, 0.01), (0.3, 0.1)])
@pytest.mark.parametrize(
    ("steps", "candidates", "others"), [(12, 1, False), (12, 3, True), (60, 2, True), (6, 1, True)]
)
def test_the_time_left_is_right_within_a_factor_of_two(
    pair: list[Member],
    monkeypatch: pytest.MonkeyPatch,
    behind: float,
    stitch: float,
    steps: int,
    candidates: int,
    others: bool,
) -> None:
    """All members on a batch take a second, of which `behind` is spent behind the match; forward and back three."""
    contributions = [given(pair)] if others else []
    clock = Clock()
    monkeypatch.setattr(tracker, "monotonic", clock)
    monkeypatch.setattr(refine, "PATIENCE", 1000)  # where training stops early, there is less to do than was told
    monkeypatch.setattr(Runner, "parts", clock.costs(Runner.parts, lambda _, work, x, *rest: 1.0))
    monkeypatch.setattr(Source, "__init__", clock.costs(Source.__init__, lambda *_: stitch))
    monkeypatch.setattr(
        refine._Trainer,
        "loss",
        clock.costs(
            refine._Trainer.loss,
            lambda _, batch: behind * (3 if torch.is_grad_enabled() else 1) * len(batch.y) / BATCH,
        ),
    )
    monkeypatch.setattr(refine._Reader, "_features", clock.costs(refine._Reader._features, lambda _, x: len(x) / BATCH))
    seen: list[tuple[float, Progress]] = []
    options = OPTIONS.model_copy(update={"refine_steps": steps, "refine_candidates": candidates})
    fit(
        pair,
        dataset(),
        own=0,
        options=options,
        contributions=contributions,
        progress=lambda progress: seen.append((clock.now, progress)),
    )
    end = clock.now
    told = [(at, one) for at, one in seen if 0.1 * end <= at <= 0.95 * end]
    assert len(told) > 10
    for at, one in told:
        assert one.seconds_left is not None
        assert 0.5 < one.seconds_left / (end - at) < 2, (one, end - at)


def test_training_is_reported_between_its_batches(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    # Who cancels waits for a batch, not for a round of as many as a large dataset has.
    monkeypatch.setattr(refine, "PATIENCE", 1000)
    seen: list[Progress] = []
    options = FitOptions(refine_steps=120, refine_candidates=1, max_matches=1, alphas=[0.5])
    fit(pair, dataset(), own=0, options=options, progress=seen.append)
    trained = [reported for reported in seen if reported.step == "refine"]
    assert len(trained) >= 120 > 2 * trained[0].total
