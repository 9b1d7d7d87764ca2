"""Similarity and matching of stitch points."""

from itertools import combinations, pairwise

import pytest
import torch

from suture_stitching.features.moments import Moments
from suture_stitching.features.points import StitchPoint
from suture_stitching.matching.match import best_chain, match, similarities


def point(index: int, of: int, shape: tuple[int, ...] = (4, 8, 8)) -> StitchPoint:
    return StitchPoint(f"n{index}", "", shape, (index + 1) / (of + 1), True)


def test_cka_is_that_of_the_definition() -> None:
    x = torch.randn(200, 3, dtype=torch.float64)
    y = torch.cat([x @ torch.randn(3, 5, dtype=torch.float64), torch.randn(200, 1, dtype=torch.float64)], 1)
    found = similarities(Moments.of(torch.cat([x, y], 1)), [3, 6])
    xc, yc = x - x.mean(0), y - y.mean(0)
    wanted = (yc.T @ xc).norm() ** 2 / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert float(found[0, 1]) == pytest.approx(float(wanted), rel=1e-9)
    assert torch.allclose(found.diagonal(), torch.ones(2, dtype=torch.float64))


def test_cka_ignores_rotation_scale_and_offset() -> None:
    x = torch.randn(300, 6, dtype=torch.float64)
    turned = x @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q * 7 + 100
    assert float(similarities(Moments.of(torch.cat([x, turned], 1)), [6, 6])[0, 1]) == pytest.approx(1)


def test_constant_features_are_like_nothing() -> None:
    rows = torch.cat([torch.ones(50, 2), torch.randn(50, 3)], 1)
    assert similarities(Moments.of(rows), [2, 3])[0].tolist() == [0, 0]


def best_by_trying(weight: torch.Tensor) -> float:
    height, width = weight.shape
    best = 0.0
    for size in range(1, min(height, width) + 1):
        for chosen_rows in combinations(range(height), size):
            for columns in combinations(range(width), size):
                best = max(best, sum(float(weight[i, j]) for i, j in zip(chosen_rows, columns, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(10))
def test_the_best_chain_is_the_best(seed: int) -> None:
    weight = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chain = best_chain(weight)
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(chain))
    assert sum(float(weight[pair]) for pair in chain) == pytest.approx(best_by_trying(weight))


def test_networks_are_matched_with_themselves() -> None:
    points = [point(index, 4) for index in range(4)]
    groups = match([points, points], torch.eye(4).repeat(2, 2).double())
    assert [group.points for group in groups] == [{0: i, 1: i} for i in range(4)]
    assert all(group.similarity == pytest.approx(1) for group in groups)


def test_three_members_share_groups() -> None:
    points = [[point(index, 3) for index in range(3)]] * 3
    assert [group.points for group in match(points, torch.eye(3).repeat(3, 3).double())] == [
        {0: i, 1: i, 2: i} for i in range(3)
    ]


def test_maps_of_other_dimension_are_not_matched() -> None:
    flat, deep = [point(0, 1, (4, 8, 8))], [point(0, 1, (4, 8, 8, 8))]
    assert match([flat, deep], torch.ones(2, 2).double()) == []


def test_a_member_that_is_like_no_other_does_not_keep_the_others_apart() -> None:
    points = [[], [point(index, 3) for index in range(3)], [point(index, 3) for index in range(3)]]
    groups = match(points, torch.eye(3).repeat(2, 2).double())
    assert [group.points for group in groups] == [{1: i, 2: i} for i in range(3)]
