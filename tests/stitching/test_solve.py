"""The closed-form stitch against least squares in float64."""

import pytest
import torch

from suture_stitching.features.moments import Moments
from suture_stitching.fitting.solve import RIDGES, Source, explained_variance

X, Y = slice(0, 6), slice(6, 10)


def sample(n: int, seed: int, noise: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64) * 2 + 3
    mix = torch.randn(6, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    y = x @ mix - 7 + noise * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return torch.cat([x, y], 1)


def test_without_ridge_it_is_least_squares() -> None:
    data = sample(500, 0)
    found = Source(Moments.of(data), X, Moments.of(sample(200, 1))).to(Y, ridges=(0.0,))
    design = torch.cat([data[:, X], torch.ones(500, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(design, data[:, Y]).solution
    assert torch.allclose(found.weight, wanted[:-1].T, atol=1e-9)
    assert torch.allclose(found.bias, wanted[-1], atol=1e-8)


def test_r2_from_moments_is_r2_of_the_predictions() -> None:
    held_out = sample(300, 2, noise=1.0)
    found = Source(Moments.of(sample(400, 3, noise=1.0)), X, Moments.of(held_out)).to(Y)
    error = (held_out[:, X] @ found.weight.T + found.bias - held_out[:, Y]).square().sum()
    total = (held_out[:, Y] - held_out[:, Y].mean(0)).square().sum()
    assert found.r2 == pytest.approx(float(1 - error / total), abs=1e-9)


def test_the_ridge_is_the_one_that_serves_held_out_rows_best() -> None:
    few, held_out = Moments.of(sample(8, 4, noise=20.0)), Moments.of(sample(300, 5, noise=20.0))
    found = Source(few, X, held_out).to(Y)
    for ridge in (0.0, 1e-8, 100.0):
        assert found.r2 >= Source(few, X, held_out).to(Y, ridges=(ridge,)).r2


def test_every_target_and_ridge_is_served_by_one_decomposition() -> None:
    train, held_out = Moments.of(sample(30, 11, noise=5.0)), Moments.of(sample(300, 12, noise=5.0))
    features = Source(train, X, held_out)
    covariance = train.covariance
    for target in (slice(6, 8), slice(8, 10), Y):
        solutions = []
        for ridge in RIDGES:
            damped = covariance[X, X] + ridge * covariance[X, X].diagonal().mean() * torch.eye(6, dtype=torch.float64)
            weight = torch.linalg.solve(damped, covariance[X, target]).T
            bias = train.mean[target] - weight @ train.mean[X]
            found = features.to(target, (ridge,))
            assert torch.allclose(found.weight, weight, atol=1e-9)
            assert torch.allclose(found.bias, bias, atol=1e-9)
            solutions.append((explained_variance(held_out, X, target, weight, bias), ridge))
        assert (features.to(target).r2, features.to(target).ridge) == pytest.approx(max(solutions), abs=1e-9)


def test_the_identity_is_found() -> None:
    moments = Moments.of(torch.cat([sample(500, 6)[:, X]] * 2, 1))
    found = Source(moments, slice(0, 6), moments).to(slice(6, 12))
    assert torch.allclose(found.weight, torch.eye(6, dtype=torch.float64), atol=1e-6)
    assert found.r2 == pytest.approx(1, abs=1e-9)


def test_constant_features_give_the_mean() -> None:
    data = sample(100, 7)
    data[:, X] = 4
    found = Source(Moments.of(data), X, Moments.of(data)).to(Y)
    assert torch.equal(found.weight, torch.zeros(4, 6, dtype=torch.float64))
    assert torch.allclose(found.bias, data[:, Y].mean(0))


def test_redundant_features_stay_finite() -> None:
    data = sample(100, 8)
    data[:, 1] = data[:, 0]
    data[:, 2] = 0
    found = Source(Moments.of(data), X, Moments.of(sample(100, 9))).to(Y)
    assert bool(torch.isfinite(found.weight).all())


def test_a_constant_target_that_is_met_is_explained() -> None:
    data = sample(50, 10)
    data[:, Y] = 2
    found = Source(Moments.of(data), X, Moments.of(data)).to(Y)
    assert found.r2 == 1
    assert explained_variance(Moments.of(data), X, Y, found.weight, found.bias + 1) == 0


@pytest.mark.parametrize("rows", [12, 20, 60])
def test_fewer_rows_than_features_are_solved_by_their_directions(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> torch.Tensor:
        latent = torch.randn(n, 9, generator=generator, dtype=torch.float64)
        mix = torch.randn(9, 84, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return latent @ mix + 0.1 * torch.randn(n, 84, generator=generator, dtype=torch.float64)

    source, target = slice(0, 80), slice(80, 84)
    train, held_out = Moments.of(drawn(rows)), Moments.of(drawn(200))
    found = Source(train, source, held_out)
    few = found.to(target)
    scale = train.covariance[source, source].diagonal().mean()
    damped = train.covariance[source, source] + few.ridge * scale * torch.eye(80, dtype=torch.float64)
    weight = torch.linalg.solve(damped, train.covariance[source, target]).T
    assert torch.allclose(few.weight, weight, rtol=1e-5, atol=1e-7)
    r2 = explained_variance(held_out, source, target, few.weight, few.bias)
    assert few.r2 == pytest.approx(r2, abs=1e-9)
    assert found._vectors.shape[1] < 80 or rows == 60
