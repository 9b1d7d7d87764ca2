"""Wide layers: few rows say what second moments would, and a fit of them is that of second moments, resumed or not."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stitching.networks import LABELS, SHAPE, dataset, images, member, same_fit, wide
from torch import nn

from suture_contract.errors import Cancelled, SutureError
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble import members
from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments
from suture_stitching.fitting import reading, survey
from suture_stitching.fitting.carriers import groups_of, kept, kept_of_rows, screened, tallied
from suture_stitching.fitting.contribute import contribute, placements
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit, fit_share
from suture_stitching.fitting.solve import Source, explained_variance
from suture_stitching.fitting.solve_rows import SourceOfRows
from suture_stitching.matching.match import similarities, similarities_of_rows
from suture_stitching.running.progress import Progress
from suture_stitching.running.shards import Share

X, Y = slice(0, 300), slice(300, 560)

pytestmark = pytest.mark.usefixtures("small_batches_and_frequent_parts")


def drawn(rows: int, seed: int, offset: float = 5.0) -> torch.Tensor:
    """Return features of which forty latent ones say much, and none says all."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(40, 560, generator=torch.Generator().manual_seed(99))
    latent = torch.randn(rows, 40, generator=generator)
    return latent @ mix + torch.randn(rows, 560, generator=generator) + offset


def same(one: FewRows, other: Moments) -> None:
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.variances, other.variances, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.dense().scatter, other.scatter, rtol=1e-4, atol=1e-3 * float(other.scatter.max()))
    assert one.n == other.n


def test_few_rows_are_their_moments() -> None:
    first, second = drawn(50, 0), drawn(70, 1, offset=-3.0)
    few, dense = FewRows.of(first), Moments.of(first)
    same(few, dense)
    same(few.select(Y, X), dense.select(Y, X))
    same(few.scaled(20.0), dense.scaled(20.0))
    same(few + FewRows.of(second).scaled(10.0), dense + Moments.of(second).scaled(10.0))
    directions = torch.randn(3, 560, dtype=torch.float64)
    torch.testing.assert_close(
        few.projected(directions).scatter, dense.projected(directions).scatter, rtol=1e-4, atol=1
    )


@pytest.mark.parametrize("rows", [120, 400])
def test_a_stitch_of_few_rows_is_that_of_second_moments(rows: int) -> None:
    """Also of more rows than features."""
    train, held_out = drawn(rows, 2), drawn(90, 3)
    exact = Source(Moments.of(train), X, Moments.of(held_out))
    of_rows = SourceOfRows(FewRows.of(train), X, FewRows.of(held_out))
    found, wanted = of_rows.to(Y), exact.to(Y)
    assert found.ridge == wanted.ridge
    assert found.r2 == pytest.approx(wanted.r2, abs=1e-4)
    for ridge in (1e-2, 1.0):
        one, other = of_rows.to(Y, (ridge,)), exact.to(Y, (ridge,))
        torch.testing.assert_close(one.weight.double(), other.weight, rtol=1e-2, atol=3e-4)


@pytest.mark.parametrize("scale", [1e-13, 1e13])
def test_a_stitch_does_not_depend_on_the_scale_of_features(scale: float) -> None:
    train, held_out = drawn(120, 2), drawn(90, 3)
    wanted = SourceOfRows(FewRows.of(train), X, FewRows.of(held_out)).to(Y)
    scaled = SourceOfRows(FewRows.of(train * scale), X, FewRows.of(held_out * scale)).to(Y)
    assert scaled.ridge == wanted.ridge
    assert scaled.r2 == pytest.approx(wanted.r2, abs=1e-4)
    torch.testing.assert_close(scaled.weight, wanted.weight, rtol=1e-2, atol=3e-4)
    assert FewRows.of(train * scale).finite.all()
    assert not FewRows.of(train * 1e18).finite.any()


@pytest.mark.parametrize("dominant", [1.0, 1e4, 1e5])
def test_r2_from_rows_is_that_of_the_predictions(dominant: float) -> None:
    """Also where one feature is so large that float32 would lose the others beside it."""
    train, held_out = drawn(120, 2), drawn(90, 3)
    train[:, 7] *= dominant
    held_out[:, 7] *= dominant
    found = SourceOfRows(FewRows.of(train), X, FewRows.of(held_out)).to(Y)
    tests = Moments.of(held_out.double())
    assert found.r2 == pytest.approx(explained_variance(tests, X, Y, found.weight.double(), found.bias), abs=1e-5)
    assert found.r2 >= Source(Moments.of(train), X, Moments.of(held_out)).to(Y).r2 - 0.01


def test_constant_sources_and_targets() -> None:
    rows = drawn(60, 4)
    rows[:, X] = 2.0
    found = SourceOfRows(FewRows.of(rows), X, FewRows.of(rows)).to(Y)
    assert not bool(found.weight.any())
    assert torch.allclose(found.bias, rows[:, Y].double().mean(0), atol=1e-5)
    assert SourceOfRows(FewRows.of(rows), Y, FewRows.of(rows)).to(X).r2 == 1


def test_similarity_of_rows_is_that_of_moments() -> None:
    rows = drawn(100, 5)
    rows[:, 500:] = 1.0
    widths = [300, 200, 60]
    exact = similarities(Moments.of(rows.double()), widths)
    found = similarities_of_rows([FewRows.of(part) for part in torch.split(rows, widths, 1)])
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert not bool(found[2].any())


@pytest.mark.parametrize(("each", "number"), [(1, 120), (3, 120), (3, 360)])
def test_what_few_patients_carry_is_left_out_of_rows(each: int, number: int) -> None:
    rows = drawn(number, 6)[:, X].contiguous()
    patients = np.arange(number) // each
    rows[:, 3] = 0.0
    rows[: 3 * each, 3] = 100.0  # a feature of three patients
    rows[:, 4] = 1.0  # a constant
    groups = groups_of(patients)
    placed = tallied(rows[:, None], groups)
    tally = placed.each.new_zeros(placed.size, placed.each.shape[1]).index_add_(0, placed.places, placed.each)
    wanted = kept(tally, {0: X}, 11)[0]
    screen, left = kept_of_rows(FewRows.of(rows), groups, 11)
    assert torch.equal(screen.full, wanted.full)
    assert not bool(screen.full[[3, 4]].any())
    same(left, screened(FewRows.of(rows).dense(), {0: screen}, {0: X}))
    values, vectors = left.directions(X).values, left.directions(X).vectors.double()
    torch.testing.assert_close(left.products(X) @ vectors, vectors * values, rtol=1e-3, atol=1e-4 * float(values.max()))


def test_a_direction_of_one_patient_between_full_features_is_left_out_of_rows() -> None:
    rows = torch.zeros(100, 300)
    rows[:, :2] = torch.randn(100, 2, generator=torch.Generator().manual_seed(7))
    rows[:, 2] = (torch.arange(100) < 40).float()
    rows[:, 3] = rows[:, 2]
    rows[39, 3] = 0
    screen, left = kept_of_rows(FewRows.of(rows), torch.arange(100), 11)
    assert screen.full.nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    difference = screen.of(rows.T).T
    assert (difference[:, 2] - difference[:, 3]).std() < 0.2 * (rows[:, 2] - rows[:, 3]).std()
    assert difference[:, 2].std() > 0.5 * rows[:, 2].std()
    torch.testing.assert_close(left.rows, FewRows.of(difference).rows, rtol=1e-3, atol=1e-4)
    assert len(left.directions(X).values) == 3


WIDTH = 520
OPTIONS = FitOptions(refine_steps=6, refine_candidates=2, max_matches=3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    folder = tmp_path_factory.mktemp("members")
    return [member(wide(WIDTH), folder, seed=1), member(wide(WIDTH), folder, "south/net", seed=2)]


@pytest.fixture(scope="module")
def whole(pair: list[Member]) -> FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_LARGEST_BATCH", 16)
        return fit(pair, dataset(), own=0, options=OPTIONS)


def r2_of(fitted: FitResult) -> dict[str, float]:
    """Return how well each stitch in closed form does, by the name of its weight."""
    found = {}
    for candidate in fitted.candidates.candidates:
        for match in candidate.matches:
            found |= {stitch.weight: stitch.r2 for stitch in match.stitches if stitch.r2 is not None}
    return found


def test_a_fit_of_wide_layers_is_as_good_as_from_second_moments(
    pair: list[Member], whole: FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reading, survey):
        monkeypatch.setattr(module, "WIDE", 1 << 20)
    exact, found = r2_of(fit(pair, dataset(), own=0, options=OPTIONS)), r2_of(whole)
    assert found.keys() == exact.keys()
    assert found
    for name, r2 in exact.items():
        assert found[name] >= r2 - 0.01


def test_second_moments_are_not_taken_of_few_rows(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0

    def of(rows: torch.Tensor, taken: Callable[[torch.Tensor], Moments] = Moments.of) -> Moments:
        nonlocal widest
        widest = max(widest, rows.shape[1])
        return taken(rows)

    monkeypatch.setattr(Moments, "of", of)
    fit(pair, dataset(), own=0, options=OPTIONS)
    assert widest < WIDTH


@pytest.mark.parametrize("step", ["match", "solve", "double", "refine"])
def test_cancelled_between_batches_it_goes_on(pair: list[Member], whole: FitResult, tmp_path: Path, step: str) -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == step and progress.done >= 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(pair, dataset(), own=0, options=OPTIONS, progress=cancel, checkpoint=tmp_path)
    assert same_fit(fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)


def test_shares_give_the_same_bits(pair: list[Member], whole: FitResult, tmp_path: Path) -> None:
    for step in ("capture", "refine"):
        for index in (1, 0):
            fit_share(pair, dataset(), step, Share(index, 2), own=0, options=OPTIONS, checkpoint=tmp_path)  # type: ignore[arg-type]
    assert same_fit(fit(pair, dataset(), own=0, options=OPTIONS, checkpoint=tmp_path), whole)


def test_contributions_to_wide_layers(pair: list[Member], whole: FitResult) -> None:
    given = contribute(pair, dataset(seed=3), placements(whole.candidates))
    again = fit(pair, dataset(), own=0, options=OPTIONS, contributions=[given])
    assert any(candidate.others for candidate in again.candidates.candidates)


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(prod(SHAPE), WIDTH), nn.Linear(WIDTH, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(torch.relu(self.first(x)) + (10.0 - x.amax(1, keepdim=True)).sqrt())  # type: ignore[no-any-return]


def test_a_wide_member_that_gives_nan_is_named(pair: list[Member], tmp_path: Path) -> None:
    broken = member(Breaks(), tmp_path, "east/net", seed=4)
    x, y = images()
    x[::3] += 20
    with pytest.raises(SutureError, match=r"east/net.*NaN or infinity at n") as caught:
        fit([pair[0], broken], ArrayDataset(x, y, LABELS), own=0, options=OPTIONS)
    assert caught.value.code == "features.not_finite"
