"""Which stitch points of different members say the same thing: linear CKA and an order-preserving matching.

Similarity: Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", 2019 (linear
CKA, here from moments alone). Matching that keeps the merged graph acyclic: Guijt et al., "Stitching for
Neuroevolution", arXiv 2403.14224.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from suture_stitching.moments import Moments, compatible
from suture_stitching.points import StitchPoint


@dataclass(frozen=True)
class Group:
    """Matched stitch points, at most one per member: `points[member]` is an index into that member's points."""

    points: dict[int, int]
    similarity: float


def similarities(moments: Moments, widths: Sequence[int]) -> Tensor:
    """Return linear CKA `(P, P)` between all points whose features lie side by side in `moments`.

    `widths` are their numbers of channels, in order. A point whose features are constant is similar to nothing (0).
    """
    edges = torch.tensor([0, *widths]).cumsum(0).tolist()
    covariance = moments.covariance
    squares = torch.stack(
        [torch.stack([covariance[a:b, c:d].square().sum() for c, d in pairwise(edges)]) for a, b in pairwise(edges)]
    )
    norms = squares.diagonal().sqrt()
    product = torch.outer(norms, norms)
    return torch.where(product > 0, squares / product.clamp(min=torch.finfo(product.dtype).tiny), 0.0)


def damped(similarity: float, depth: float, other: float) -> float:
    """Return the similarity of two points lessened by how far apart they lie in their networks (0..1 each)."""
    return similarity * (1.0 - abs(depth - other))


def match(points: Sequence[Sequence[StitchPoint]], cka: Tensor) -> list[Group]:
    """Return groups of matched points, in the order of the networks; every member's order is kept.

    `points` are each member's, in order of computation; `cka` is `(P, P)` over all of them, member after member. The
    first member is the reference: every other one is matched to it with the largest total similarity among the
    matchings that cross no two pairs. Empty when no points are compatible.
    """
    starts = torch.tensor([0, *(len(own) for own in points)]).cumsum(0).tolist()
    partners: list[dict[int, int]] = []
    weights: list[Tensor] = []
    for member in range(1, len(points)):
        weight = torch.zeros(len(points[0]), len(points[member]), dtype=torch.float64)
        for i, ours in enumerate(points[0]):
            for j, theirs in enumerate(points[member]):
                if compatible(ours.shape[1:], theirs.shape[1:]):
                    alike = float(cka[starts[0] + i, starts[member] + j])
                    weight[i, j] = damped(alike, ours.depth, theirs.depth)
        weights.append(weight)
        partners.append(dict(best_chain(weight)))
    groups = []
    for i in range(len(points[0])):
        found = {member: partner[i] for member, partner in enumerate(partners, start=1) if i in partner}
        if found:
            mean = sum(float(weights[member - 1][i, j]) for member, j in found.items()) / len(found)
            groups.append(Group({0: i, **found}, mean))
    return groups


def best_chain(weight: Tensor) -> list[tuple[int, int]]:
    """Return the pairs `(row, column)` of largest total weight `(R, C)` in which rows and columns both increase.

    Only pairs of positive weight; found by dynamic programming in `R * C` steps.
    """
    height, width = weight.shape
    values = weight.tolist()
    best = [[0.0] * (width + 1) for _ in range(height + 1)]
    for i in range(height - 1, -1, -1):
        for j in range(width - 1, -1, -1):
            taken = best[i + 1][j + 1] + values[i][j] if values[i][j] > 0 else 0.0
            best[i][j] = max(best[i + 1][j], best[i][j + 1], taken)
    chain, i, j = [], 0, 0
    while i < height and j < width:
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            chain.append((i, j))
            i, j = i + 1, j + 1
    return chain
