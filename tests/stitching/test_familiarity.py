"""Gates: whitening against a float64 reference, constant features, bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suture_stitching.ensemble.ood_gate import HOME, SHRINKAGE, bounds, whiten
from suture_stitching.features.moments import Moments


def _data(n: int = 300, width: int = 5, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + 4 * rng.normal(size=width)
    return torch.from_numpy(x.astype(np.float32))


def test_distance_is_that_to_the_mean() -> None:
    x = _data()
    exact = x.double().numpy()
    covariance = np.cov(exact.T, bias=True)
    covariance += SHRINKAGE * np.trace(covariance) / 5 * np.eye(5)
    steps = exact - exact.mean(0)
    expected = np.einsum("nd,de,ne->n", steps, np.linalg.inv(covariance), steps) / 5
    distance = whiten(Moments.of(x)).distance(x)
    assert np.allclose(distance.numpy(), expected, rtol=1e-3)
    assert distance.mean().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("rows", [torch.full((50, 4), 2.5), torch.cat([torch.randn(50, 3), torch.zeros(50, 1)], 1)])
def test_constant_features_make_no_nan(rows: torch.Tensor) -> None:
    whitening = whiten(Moments.of(rows))
    assert torch.isfinite(whitening.distance(rows)).all()
    assert whitening.distance(rows[:1] + 10).item() > whitening.distance(rows[:1]).item()


def test_bounds_keep_the_familiar_inside() -> None:
    distances = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    near, far = bounds(distances, 1.0)
    assert near == pytest.approx(HOME, abs=0.03)
    assert (distances <= near).double().mean().item() == pytest.approx(HOME, abs=0.01)
    assert far > near
    assert bounds(distances, 1.5) == pytest.approx((1.5 * near, 1.5 * far), rel=1e-3)
    assert (near, far) == (float(f"{near:.4g}"), float(f"{far:.4g}")), "a quantile's last digits are two patients'"
    constant = bounds(torch.zeros(10), 1.0)
    assert 0 < constant[0] < constant[1]
