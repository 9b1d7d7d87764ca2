"""Moments against a plain float64 reference, and their invariances."""

import pytest
import torch

from suture_stitching.features.moments import Moments, channels_second, rows, squares, to_grid


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.double()
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred


def test_they_equal_the_reference_for_large_offsets() -> None:
    x = torch.randn(3000, 7, generator=torch.Generator().manual_seed(0)) + 1000
    moments = Moments.of(x)
    mean, scatter = reference(x)
    assert torch.allclose(moments.mean, mean, rtol=1e-9)
    assert (moments.scatter - scatter).abs().max() < 1e-5 * scatter.abs().max()


def test_sharding_and_order_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1000, 5, dtype=torch.float64, generator=generator) * 3 + 5
    whole = Moments.of(x)
    parts = Moments.nothing(5)
    for shard in torch.split(x[torch.randperm(1000, generator=generator)], 137):
        parts = Moments.of(shard) + parts
    assert parts.n == whole.n == 1000
    assert torch.allclose(parts.mean, whole.mean, rtol=0, atol=1e-10)
    assert torch.allclose(parts.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_nothing_is_neutral() -> None:
    moments = Moments.of(torch.randn(4, 3))
    for total in (moments + Moments.nothing(3), Moments.nothing(3) + moments):
        assert total.n == 4
        assert torch.equal(total.mean, moments.mean)
        assert torch.equal(total.scatter, moments.scatter)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_infinite_features_are_known_by_their_column(bad: float) -> None:
    x = torch.randn(10, 3)
    x[4, 1] = bad
    total = Moments.of(torch.randn(10, 3)) + Moments.of(x) + Moments.of(torch.randn(10, 3))
    assert total.finite.tolist() == [True, False, True]


def test_rows_follow_samples_then_positions() -> None:
    feature = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()
    found = rows(feature, (2, 2))
    assert found.shape == (8, 3)
    assert torch.equal(found[5], feature[1, :, 0, 1])


def test_tokens_are_maps_with_their_channels_last() -> None:
    tokens = torch.randn(2, 9, 4)
    assert channels_second(tokens, 2).shape == (2, 4, 9)
    assert torch.equal(rows(tokens, (9,), channel_axis=2)[10], tokens[1, 1])


@pytest.mark.parametrize(
    ("size", "grid"),
    [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((), (3, 3)), ((5, 5), ()), ((4,), (6,)), ((2, 4, 4), (1, 2, 2))],
)
def test_resampling_keeps_a_constant_map(size: tuple[int, ...], grid: tuple[int, ...]) -> None:
    found = to_grid(torch.full((2, 3, *size), 2.5), grid)
    assert found.shape == (2, 3, *grid)
    assert torch.allclose(found, torch.tensor(2.5))


def test_maps_of_other_dimension_have_no_grid() -> None:
    with pytest.raises(ValueError, match="common grid"):
        to_grid(torch.zeros(1, 2, 4), (2, 2))


@pytest.mark.parametrize("width", [3, 512, 700])
def test_of_products_of_columns_half_is_taken_and_all_is_there(width: int) -> None:
    columns = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(squares(columns), columns.T @ columns)
