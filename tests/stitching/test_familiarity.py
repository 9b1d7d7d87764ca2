"""Gates: whitening against a float64 reference, class means, privacy of small classes, bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suture_stitching.familiarity import FEWEST, SHRINKAGE, ClassSums, bounds, whiten
from suture_stitching.moments import Moments


def _data(n: int = 300, width: int = 5, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + 4 * rng.normal(size=(classes, width))[y]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def test_distance_is_that_to_the_nearest_class_mean() -> None:
    x, y = _data()
    whitening = whiten(Moments.of(x), ClassSums.of(x, y, 3))
    exact = x.double().numpy()
    means = np.stack([exact[y.numpy() == c].mean(0) for c in range(3)])
    within = exact - means[y.numpy()]
    covariance = within.T @ within / len(x)
    covariance += SHRINKAGE * np.trace(covariance) / 5 * np.eye(5)
    steps = exact[:, None] - means[None]
    expected = np.einsum("ncd,de,nce->nc", steps, np.linalg.inv(covariance), steps).min(1) / 5
    assert np.allclose(whitening.distance(x).numpy(), expected, rtol=1e-3)


def test_class_sums_add_up_over_batches_and_positions() -> None:
    x, y = _data(60)
    whole = ClassSums.of(x, y[:30], 3)  # two rows per sample
    parts = ClassSums.of(x[:20], y[:10], 3) + ClassSums.of(x[20:], y[10:30], 3)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert whole.rows.sum() == 60
    assert whole.samples.sum() == 30


def test_no_centre_tells_a_small_class() -> None:
    x, y = _data(200, classes=2)
    y[: FEWEST - 1] = 2
    x[: FEWEST - 1] += 100
    moments, sums = Moments.of(x), ClassSums.of(x, y, 3)
    whitening = whiten(moments, sums)
    assert whitening.centres.shape[0] == 2
    # Nothing but the covariance, to which they add, depends on these samples.
    others = slice(FEWEST - 1, None)
    alone = whiten(Moments.of(x[others]), ClassSums.of(x[others], y[others], 2))
    back = torch.linalg.solve(whitening.weight.double(), (whitening.centres - whitening.bias).double().T).T
    wanted = torch.linalg.solve(alone.weight.double(), (alone.centres - alone.bias).double().T).T
    assert torch.allclose(back, wanted, atol=1e-3)
    assert whiten(moments, sums, fewest=1000).centres.shape[0] == 1


def test_without_classes_there_is_one_centre() -> None:
    x, _ = _data()
    assert whiten(Moments.of(x)).centres.shape == (1, 5)
    assert whiten(Moments.of(x)).distance(x).mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("rows", [torch.full((50, 4), 2.5), torch.cat([torch.randn(50, 3), torch.zeros(50, 1)], 1)])
def test_constant_features_make_no_nan(rows: torch.Tensor) -> None:
    whitening = whiten(Moments.of(rows), ClassSums.of(rows, torch.arange(50) % 2, 2))
    assert torch.isfinite(whitening.distance(rows)).all()
    assert whitening.distance(rows[:1] + 10).item() > whitening.distance(rows[:1]).item()


def test_bounds_keep_the_familiar_inside() -> None:
    distances = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    near, far = bounds(distances, 0.9)
    assert near == pytest.approx(0.9, abs=0.03)
    assert far == pytest.approx(near + (near - 0.5) / 2, abs=0.03)
    assert bounds(distances, 0.975)[0] > near
    constant = bounds(torch.zeros(10), 0.9)
    assert constant[0] < constant[1]
