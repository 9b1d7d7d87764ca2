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

from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments, compatible
from suture_stitching.features.points import StitchPoint

#: Deviation of a constant, relative to it, that may come of computing it in float32.
ROUNDING = 1e-6


@dataclass(frozen=True)
class MatchedPoints:
    """Matched stitch points, at most one per member: `points[member]` is an index into that member's points."""

    points: dict[int, int]
    similarity: float


def similarities(moments: Moments, widths: Sequence[int]) -> Tensor:
    """Return linear CKA `(P, P)` between all points whose features lie side by side in `moments`.

    `widths` are their numbers of channels, in order. A point whose features are constant, as far as float32 can tell,
    is similar to nothing (0).
    """
    edges = torch.tensor([0, *widths]).cumsum(0).tolist()
    covariance = moments.covariance
    varies = (covariance.diagonal() > (ROUNDING * moments.mean).square()).to(covariance.dtype)
    covariance = covariance * torch.outer(varies, varies)
    squares = torch.stack(
        [torch.stack([covariance[a:b, c:d].square().sum() for c, d in pairwise(edges)]) for a, b in pairwise(edges)]
    )
    return _normalised(squares)


def similarities_of_rows(points: Sequence[FewRows]) -> Tensor:
    """Return what `similarities` does, `(P, P)`, from the features of each point in the same few rows.

    The sum of squares of a covariance is the product of the two points' products of rows: nothing is left out.
    """
    products = []
    for point in points:
        varies = point.variances > (ROUNDING * point.mean).square()
        products.append(point.without(varies.double()).products(slice(0, len(varies))).flatten())
    squares = torch.zeros(len(products), len(products), dtype=torch.float64, device=products[0].device)
    for place, product in enumerate(products):
        for other in range(place + 1):
            squares[place, other] = squares[other, place] = product @ products[other]
    return _normalised(squares)


def _normalised(squares: Tensor) -> Tensor:
    norms = squares.diagonal().sqrt()
    product = torch.outer(norms, norms)
    return torch.where(product > 0, squares / product.clamp(min=torch.finfo(product.dtype).tiny), 0.0)


def damped(similarity: float, depth: float, other: float) -> float:
    """Return the similarity of two points lessened by how far apart they lie in their networks (0..1 each)."""
    return similarity * (1.0 - abs(depth - other))


def match(points: Sequence[Sequence[StitchPoint]], cka: Tensor) -> list[MatchedPoints]:
    """Return groups of matched points, in the order of the networks; every member's order is kept.

    `points` are each member's, in order of computation; `cka` is `(P, P)` over all of them, member after member. One
    member is the reference: every other one is matched to it with the largest total similarity among the matchings that
    cross no two pairs. It is the one that is most similar to the others, the first of equals. Empty when no points are
    compatible.
    """
    starts = torch.tensor([0, *(len(own) for own in points)]).cumsum(0).tolist()
    partners: dict[tuple[int, int], dict[int, tuple[int, float]]] = {}
    for member in range(len(points)):
        for other in range(member + 1, len(points)):
            weight = torch.zeros(len(points[member]), len(points[other]), dtype=torch.float64)
            for i, ours in enumerate(points[member]):
                for j, theirs in enumerate(points[other]):
                    if compatible(ours.shape[1:], theirs.shape[1:]):
                        alike = float(cka[starts[member] + i, starts[other] + j])
                        weight[i, j] = damped(alike, ours.depth, theirs.depth)
            chain = [(i, j, float(weight[i, j])) for i, j in best_chain(weight)]
            partners[member, other] = {i: (j, alike) for i, j, alike in chain}
            partners[other, member] = {j: (i, alike) for i, j, alike in chain}
    members = range(len(points))
    totals = [
        sum(alike for (a, _), pairs in partners.items() if a == member for _, alike in pairs.values())
        for member in members
    ]
    reference = max(members, key=lambda member: totals[member])
    groups = []
    for i in range(len(points[reference])):
        others = [member for member in members if i in partners.get((reference, member), {})]
        if others:
            matched = {member: partners[reference, member][i] for member in others}
            mean = sum(alike for _, alike in matched.values()) / len(others)
            groups.append(MatchedPoints({reference: i, **{member: j for member, (j, _) in matched.items()}}, mean))
    return groups


def strongest(matches: Sequence[MatchedPoints], most: int) -> list[MatchedPoints]:
    """Return at most `most` of the matches, in their order: the last, and those whose points are the most similar."""
    if len(matches) <= most:
        return list(matches)
    last = matches[-1]
    best = sorted(matches[:-1], key=lambda points: -points.similarity)[: most - 1]
    return [points for points in matches if points in best or points is last]


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
