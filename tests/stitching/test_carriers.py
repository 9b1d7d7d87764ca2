"""What few patients carry takes no part: features, directions, and what training would put there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.stitching.networks import dataset, deep, images, member, plain

from suture_stitching.data import ArrayDataset
from suture_stitching.features.moments import Moments
from suture_stitching.fitting.carriers import GROUPS, carried_by, groups_of, kept, rounded, screened, tallied
from suture_stitching.fitting.fit import FitOptions, fit
from suture_stitching.running.accumulator import Accumulator


def _tally(rows: torch.Tensor, whose: np.ndarray | None = None) -> torch.Tensor:
    whose = np.arange(len(rows)) if whose is None else whose
    total = Accumulator()
    total.add(Accumulator(placed={"": tallied(rows[:, None], groups_of(whose))}))
    return total.sums[""]


def _rows(n: int = 100, width: int = 4) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_carriers_are_the_fewest_who_make_up_most() -> None:
    energies = torch.zeros(50, 3)
    energies[:7, 0] = 1.0
    energies[:, 1] = 1.0
    assert carried_by(energies).tolist() == [7, 45, 0]


@pytest.mark.parametrize(("carriers", "stays"), [(1, False), (10, False), (14, True), (60, True)])
def test_a_feature_of_few_patients_is_left_out(carriers: int, stays: bool) -> None:
    rows = _rows()
    rows[:, 2] = 0
    rows[:carriers, 2] = 5.0
    screen = kept(_tally(rows), {0: slice(0, 4)}, 11)[0]
    moments = screened(Moments.of(rows), {0: screen}, {0: slice(0, 4)})
    assert (float(moments.scatter[2, 2]) > 0) is stays
    assert (float(moments.mean[2]) != 0) is stays
    assert float(moments.scatter[0, 0]) > 0


def test_many_samples_of_one_patient_are_one_carrier() -> None:
    rows = _rows()
    rows[:, 2] = 0
    rows[:40, 2] = 5.0
    whose = np.maximum(np.arange(100) - 39, 0)  # the first forty samples are one patient's
    for least, stays in ((1, True), (2, False)):
        screen = kept(_tally(rows, whose), {0: slice(0, 4)}, least)[0]
        assert bool(screen.dense()[2].any()) is stays


def test_a_direction_of_one_patient_between_full_features_is_left_out() -> None:
    rows = _rows()
    rows[:, 2] = (torch.arange(100) < 40).float()
    rows[:, 3] = rows[:, 2]
    rows[39, 3] = 0
    screen = kept(_tally(rows), {0: slice(0, 4)}, 11)[0]
    difference = screen.of(rows.double().T).T
    before = (rows[:, 2] - rows[:, 3]).double().std()
    assert (difference[:, 2] - difference[:, 3]).std() < 0.2 * before
    assert difference[:, 2].std() > 0.5 * rows[:, 2].std()


def test_constants_and_more_patients_than_groups() -> None:
    rows = torch.cat([torch.full((3 * GROUPS, 1), 1e4), _rows(3 * GROUPS, 1)], 1)
    screen = kept(_tally(rows), {0: slice(0, 2)}, 11)[0]
    assert screen.dense().diagonal().tolist() == pytest.approx([0, 1])


def test_nothing_of_few_patients_is_fitted_or_trained(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("members")
    pair = [member(plain(), folder, seed=1), member(deep(), folder, "south/net", seed=2)]
    options = FitOptions(refine_steps=6, refine_candidates=1, max_matches=1)
    everything = fit(pair, dataset(), options=options, own=0, min_patients=1)
    assert any(bool(tensor.any()) for tensor in everything.stitches.values())
    nothing = fit(pair, dataset(), options=options, own=0, min_patients=10_000)
    stitches = {name: tensor for name, tensor in nothing.stitches.items() if not name.startswith("g")}
    assert any(name.startswith("r") for name in stitches)
    assert not any(bool(tensor.any()) for tensor in stitches.values())


def test_patients_are_counted_in_any_order_of_reading() -> None:
    x, y = images(60)
    groups = [f"p{index // 3}" for index in range(60)]
    data = ArrayDataset(x, y, ("a", "b", "c"), groups=groups)
    for seed in (None, 5):
        whose = data.patient_of("train", seed)
        read = torch.cat([x for x, _ in data.batches("train", 7, seed=seed)])
        by_content = {x[index].tobytes(): index // 3 for index in range(60)}
        expected = [by_content[sample.numpy().tobytes()] for sample in read]
        assert len(set(zip(whose.tolist(), expected, strict=True))) == data.patients("train") == len(set(expected))


def test_numbers_have_the_digits_that_patients_give() -> None:
    exact = _rows(1000, 1)[:, 0]
    for patients, digits in ((100, 8), (900, 9), (10_000, 11)):
        told = rounded(exact, patients)
        assert (told - exact).abs().max() <= exact.abs().max() * 2.0**-digits
        assert len(torch.unique(told.abs().frexp().mantissa)) <= 2 ** (digits - 1) + 1
        mantissa, exponent = exact.frexp()
        assert torch.equal(told, torch.ldexp((mantissa * 2**digits).round() / 2**digits, exponent))
    assert rounded(torch.zeros(3), 10).tolist() == [0, 0, 0]


@pytest.mark.parametrize("patients", [30, 200])
def test_few_patients_and_many_features_leave_what_the_whole_matrix_leaves(patients: int) -> None:
    mix = torch.randn(6, 60, generator=torch.Generator().manual_seed(1))
    rows = _rows(patients, 5) @ mix[:5]
    rows[7] += mix[5]  # a direction of one patient
    screen = kept(_tally(rows), {0: slice(0, 60)}, 4)[0]
    unit = rows.double() - rows.double().mean(0)
    scale = unit.square().mean(0).sqrt()
    values, vectors = torch.linalg.eigh((unit / scale).T @ (unit / scale) / patients)
    few = (carried_by((unit / scale @ vectors).square()) < 4) & (values > 1e-9 * values[-1])
    assert few.sum() == screen.across.shape[1] == 1
    gone = vectors[:, few]
    whole = torch.eye(60, dtype=torch.float64) - scale[:, None] * (gone @ gone.T) / scale
    assert torch.allclose(screen.dense(), whole, atol=1e-5)
    x, weight = torch.randn(60, 7, dtype=torch.float64), torch.randn(5, 60, dtype=torch.float64)
    assert torch.allclose(screen.of(x), screen.dense() @ x)
    assert torch.allclose(screen.before(weight), weight @ screen.dense())
    moments = Moments.of(rows)
    left = screened(moments, {0: screen}, {0: slice(0, 60)})
    assert torch.allclose(left.scatter, screen.dense() @ moments.scatter @ screen.dense().T, atol=1e-6)
    assert torch.allclose(left.mean, screen.dense() @ moments.mean)
