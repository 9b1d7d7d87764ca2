"""What a fit says of how far it is: never less than before, in units of one kind, with an estimate that holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stitching.networks import dataset, member, wide
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from suture_stitching.ensemble import members
from suture_stitching.fitting.contribute import Contribution, contribute
from suture_stitching.fitting.fit import FitOptions, Member, _Fit, fit, fit_share, matches
from suture_stitching.fitting.plans import CandidatePlan
from suture_stitching.running import tracker
from suture_stitching.running.progress import Progress
from suture_stitching.running.shards import Share

STEPS = ("match", "solve", "stitch", "double", "refine", "compare", "fit")
OPTIONS = FitOptions(refine_steps=12, refine_candidates=2, max_matches=3)
BATCH = 4


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
    assert totals["double"] <= totals["solve"] + 2  # and two stitches are solved for
    # Two stitches at each of three matches: one's own, and with three shares of the other party's moments.
    assert totals["stitch"] == 2 * 3 * (1 + 3)
    assert totals["refine"] == 2 * (1 + 12)  # a look before each training, and one after each of its rounds


def test_shares_and_the_whole_after_them_never_go_back(pair: list[Member], tmp_path: Path) -> None:
    data, shared = dataset(), []
    for step in ("capture", "refine"):
        for index in range(2):
            seen: list[Progress] = []
            fit_share(
                pair, data, step, Share(index, 2), own=0, options=OPTIONS, checkpoint=tmp_path, progress=seen.append
            )
            shared.append(totals_of(seen))
    assert [tuple(totals) for totals in shared[:2]] == [("match", "solve")] * 2
    # What mixes twice is read for by the share that refines it, and by no other.
    without = tuple(step for step in STEPS[:-2] if step != "double")
    assert {tuple(totals) for totals in shared[2:]} == {STEPS[:-2], without}
    seen = []
    fit(pair, data, own=0, options=OPTIONS, contributions=[given(pair)], checkpoint=tmp_path, progress=seen.append)
    whole = totals_of(seen)
    assert sum(totals["solve"] for totals in shared[:2]) == whole["solve"]
    assert sum(totals["refine"] for totals in shared[2:]) == whole["refine"]
    assert [totals["stitch"] for totals in shared[2:]] == [2 * 3, 2 * 3]


class Machine(TorchDispatchMode):
    """A clock that operations alone move on: by their arithmetic, by what they write, and by having been called."""

    def __init__(self, multiplications: float, numbers: float, call: float) -> None:
        super().__init__()
        self.multiplications, self.numbers, self.call, self.now = multiplications, numbers, call, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, operator = func(*args, **(kwargs or {})), func.overloadpacket
        if operator in flop_registry:
            self.now += flop_registry[operator](*args, **(kwargs or {}), out_val=out) / 2 / self.multiplications
        if operator is torch.ops.aten._linalg_eigh:
            self.now += EIGH[args[0].dtype] * args[0].shape[-1] ** 3 / self.multiplications
        written = sum(tensor.numel() for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor))
        self.now += self.call + (0 if func.is_view else written / self.numbers)
        return out


#: What an eigendecomposition takes, in single multiplications per cube of the width.
EIGH = {torch.float32: 8, torch.float64: 20}
#: Multiplications and numbers written in a second, and what a call takes: a processor, one that is much slower, and one
#: that waits for calls most of the time.
MACHINES = {"fast": (2e10, 1e9, 1e-5), "slow": (1e9, 2e8, 1e-5), "calls": (1e12, 1e11, 1e-5)}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("others", [False, True])
def test_the_time_left_is_right_within_a_factor_of_two(
    pair: list[Member], monkeypatch: pytest.MonkeyPatch, machine: str, others: bool
) -> None:
    """By a clock that the operations of real fits move on: which there are, in which order and how large."""
    monkeypatch.setattr(members, "_LARGEST_BATCH", 32)
    options = FitOptions(refine_steps=36, refine_candidates=3, max_matches=3)
    contributions = []
    if others:
        matched = matches(pair, dataset(n=600), options=options)
        contributions.append(contribute(pair, dataset(seed=9), matched, min_patients=1))
    told_right(pair, options, contributions, machine, monkeypatch)


@pytest.mark.parametrize("width", [512, 1024])
def test_the_time_left_of_wide_layers_is_right_within_a_factor_of_two(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:
    """Of fewer features than rows, and of more: by the same clock."""
    monkeypatch.setattr(members, "_LARGEST_BATCH", 64)
    both = [member(wide(width, 3), tmp_path, f"{name}/net", seed=seed) for seed, name in enumerate(("north", "south"))]
    told_right(both, FitOptions(refine=False, max_matches=3), [], "fast", monkeypatch, n=1200)


def told_right(
    pair: list[Member],
    options: FitOptions,
    contributions: Sequence[Contribution],
    machine: str,
    monkeypatch: pytest.MonkeyPatch,
    n: int = 600,
) -> None:
    seen: list[tuple[float, Progress]] = []
    with Machine(*MACHINES[machine]) as clock:
        monkeypatch.setattr(tracker, "monotonic", lambda: clock.now)
        affordable = _Fit._affordable

        def priced(work: _Fit, plans: Sequence[CandidatePlan]) -> list[CandidatePlan]:
            clock.now += 0.02  # it builds graphs and prices them, without an operation
            return affordable(work, plans)

        monkeypatch.setattr(_Fit, "_affordable", priced)
        fit(
            pair,
            dataset(n=n),
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
        assert 0.5 < one.seconds_left / (end - at) < 2, (one, at / end, one.seconds_left / (end - at))


def test_training_is_reported_between_its_batches(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    # Who cancels waits for a batch, not for a round of as many as a large dataset has.
    monkeypatch.setattr("suture_stitching.fitting.refine.PATIENCE", 1000)
    seen: list[Progress] = []
    options = FitOptions(refine_steps=120, refine_candidates=1, max_matches=1, alphas=[0.5])
    fit(pair, dataset(), own=0, options=options, progress=seen.append)
    trained = [reported for reported in seen if reported.step == "refine"]
    assert len(trained) >= 120 > 2 * trained[0].total


def sums_of_a_report(units: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many costs are added up to report 50 units of a step that has so many."""
    added = 0
    add = tracker.UnitCost.__add__

    def counted(cost: tracker.UnitCost, other: tracker.UnitCost) -> tracker.UnitCost:
        nonlocal added
        added += 1
        return add(cost, other)

    progress = tracker.Tracker(lambda _: None)
    progress.expect("solve", [tracker.UnitCost()] * units)
    monkeypatch.setattr(tracker.UnitCost, "__add__", counted)
    for _ in range(50):
        progress.tick("solve")
    monkeypatch.undo()
    return added


def test_a_report_costs_the_same_however_many_units_a_step_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sums_of_a_report(100, monkeypatch) == sums_of_a_report(10_000, monkeypatch)
