"""A private fit: stitches and gates from sums over patients with noise, and from nothing else.

Everything is asked of one account: how large features are, their means, how large they are around these, how they vary
together, and how far samples lie from the mean. Matches come from the networks alone. Each patient counts as one, and
features are clipped around a noisy mean, so that noise is measured by how much they vary. Noise grows with the number
of features and what they say does not: so few fixed directions of each source are read, the fewer, the fewer patients.

Closed form: ridge regression from noisy sums needs eigenvalues above the noise (AdaSSP: Wang, "Revisiting
differentially private linear regression", 2018). Beyond that each direction is weighted by how much of what it says
about the target can be told from noise (Wiener's filter), which asks nothing more about the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suture_stitching.ensemble.merge import GateTensors, Join, Merge
from suture_stitching.ensemble.ood_gate import FADED, HOME, REACHES, SHRINKAGE, projection, short
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.private_rows import Rows, WantedRows, read_rows, wanted_of
from suture_stitching.fitting.reading import SPLITS, Points
from suture_stitching.fitting.terms import PatientTerms
from suture_stitching.privacy.account import Account
from suture_stitching.privacy.scale import clip_of, clipped, counts, run_of
from suture_stitching.running.feature_pass import FeaturePass

#: Parts of the account: sizes, means, sizes around the means, how features vary together, distances.
SIZES, MEANS, DEVIATIONS, MOMENTS, DISTANCES = 0.06, 0.14, 0.06, 0.6, 0.14
#: Directions that are read of a source, and of the requester's own features at a gate, at most.
MOST_DIRECTIONS, GATE_DIRECTIONS = 32, 8
#: Distances are counted in quarter octaves, from 2**-4 on.
_NEAREST, _PER_OCTAVE, _DISTANCES = -4, 4, 48
#: Within which distance `HOME` of samples lie, where noise hides it: as of eight features that vary as normal ones do.
_USUAL = 2.0


@dataclass(frozen=True)
class PrivateFit:
    """A join with its stitches, gates by place and strictness, and the tensors of both by name."""

    join: Join
    gates: Sequence[Sequence[GateTensors]]
    tensors: Mapping[str, Tensor]


def fit_privately(
    passes: FeaturePass,
    merge: Merge,
    points: Points,
    looks: Sequence[StitchPoint],
    account: Account,
    terms: PatientTerms,
) -> PrivateFit:
    """Return stitches between all members at `points`, and gates that look at `looks` of the requester's own member."""
    own, share = terms.own, terms.share
    pairs = [(a, b) for b in points for a in points if a != b]
    blocks = 2 * len(pairs) + len(looks)
    patients = sum(passes.dataset.patients(split) for split in SPLITS)
    tau = account.deviation(share * MOMENTS, math.sqrt(blocks)) / max(1, patients)
    directions = _directions(tau)
    wanted: dict[tuple[int, int], WantedRows] = {}
    for target in points:
        wanted |= {(target, member): rows for member, rows in wanted_of(points, target, directions).items()}
    gates = {}
    for place, point in enumerate(looks):
        assert own is not None, "only the requester's own member is looked at"
        gates[-1 - place, own] = WantedRows(own, point, (), projection(point.shape[0], GATE_DIRECTIONS))
    wanted |= gates
    rows = read_rows(passes, merge, list(wanted.values()))
    sides = dict(zip(wanted, _centred(rows, account, share), strict=True))
    products = {(b, a, kind): (sides[b, a], sides[b, a if kind else b]) for a, b in pairs for kind in (1, 0)}
    products |= {(*key, 1): (sides[key], sides[key]) for key in gates}
    sums = _products(rows, products, account, share)
    noise = account.deviation(share * MOMENTS, math.sqrt(blocks)) / rows.patients
    tensors: dict[str, Tensor] = {}
    names = {}
    for a, b in pairs:
        names[a, b] = (f"p00.{a}_{b}.weight", f"p00.{a}_{b}.bias")
        weight, bias = _stitch(sides[b, a], sides[b, b], sums[b, a, 1], sums[b, a, 0], noise)
        chosen = wanted[b, a].projection
        tensors[names[a, b][0]] = (weight if chosen is None else weight @ chosen.double()).float()
        tensors[names[a, b][1]] = bias.float()
    looking: list[GateTensors] = []
    distances = []
    for place, (key, looked_at) in enumerate(gates.items()):
        weight, bias = _whitening(sides[key], sums[(*key, 1)], noise)
        distances.append((sides[key].raw[:, 0].double() @ weight.T + bias).square().sum(1))
        gate = GateTensors(
            {looked_at.member: looked_at.point}, f"g{place:02d}.weight", f"g{place:02d}.bias", near=0.0, far=1.0
        )
        full = weight if looked_at.projection is None else weight @ looked_at.projection.double()
        tensors |= {gate.weight: full.float(), gate.bias: bias.float()}
        looking.append(gate)
    limits = _limits(rows, distances, account, share)
    graded = [
        [replace(gate, near=short(reach * limit), far=short(reach * limit * FADED)) for reach in REACHES]
        for gate, limit in zip(looking, limits, strict=True)
    ]
    return PrivateFit(Join(points, 0.5, names), graded, tensors)


@dataclass(frozen=True)
class _Side:
    """Rows `(N, P, k)` as read, and around the noisy `mean` `(k,)` in units of `clip`, none longer than 1."""

    raw: Tensor
    mean: Tensor
    clip: float
    rows: Tensor


def _directions(tau: float) -> int:
    """Return how many directions of a source stand above the noise, whose deviation is `tau` of the clip's square.

    Noise in `r` directions has eigenvalues up to `tau * sqrt(2 r)`; those of features that fill them evenly are about
    `1 / (2 r)`.
    """
    return max(2, min(MOST_DIRECTIONS, int((0.35 / tau) ** (2 / 3))))


def _centred(rows: Rows, account: Account, share: float) -> list[_Side]:
    """Return all sides around their noisy means, clipped where few patients lie beyond."""
    raw, count = rows.values, len(rows.values)
    sensitivity = math.sqrt(count)

    def clips(name: str, values: Sequence[Tensor], part: float) -> list[float]:
        counted = torch.stack([counts(side.norm(dim=2), rows.weights) for side in values])
        noisy = account.ask(name, counted, share * part, sensitivity)
        return [clip_of(sizes, rows.patients, account.deviation(share * part, sensitivity)) for sizes in noisy]

    first = clips("sizes", raw, SIZES)
    sums = [
        torch.einsum("n,npk->k", rows.weights / side.shape[1], clipped(side, clip))
        for side, clip in zip(raw, first, strict=True)
    ]
    totals = account.ask("means", torch.cat(sums), share * MEANS, sensitivity) / rows.patients
    parts = torch.split(totals, [len(side) for side in sums])
    means = [clip * part for clip, part in zip(first, parts, strict=True)]
    around = [side - mean.float() for side, mean in zip(raw, means, strict=True)]
    second = clips("deviations", around, DEVIATIONS)
    return [
        _Side(side, mean, clip, clipped(centred, clip))
        for side, mean, clip, centred in zip(raw, means, second, around, strict=True)
    ]


def _products(
    rows: Rows, products: Mapping[tuple[int, int, int], tuple[_Side, _Side]], account: Account, share: float
) -> dict[tuple[int, int, int], Tensor]:
    """Return the noisy mean over patients of the outer products of each pair of sides, in units of both clips."""
    sums = {
        key: torch.einsum("n,npi,npj->ij", rows.weights / a.rows.shape[1], a.rows, b.rows)
        for key, (a, b) in products.items()
    }
    noisy = account.ask(
        "moments", torch.cat([total.flatten() for total in sums.values()]), share * MOMENTS, math.sqrt(len(sums))
    )
    parts = torch.split(noisy / rows.patients, [total.numel() for total in sums.values()])
    return {key: part.reshape(total.shape) for (key, total), part in zip(sums.items(), parts, strict=True)}


def _stitch(source: _Side, target: _Side, inner: Tensor, cross: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Return weight `(O, k)` and bias `(O,)` of the map from the source's directions to the target's channels."""
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    values = values.clamp(min=noise * math.sqrt(2 * len(values)))
    projected = vectors.T @ cross
    power = projected.square().sum(1)
    reliable = (power - noise**2 * cross.shape[1]).clamp(min=0) / power.clamp(min=1e-300)
    scale = target.clip / source.clip
    weight = scale * (vectors @ (projected * (reliable / values)[:, None])).T
    return weight, target.mean - weight @ source.mean


def _whitening(side: _Side, inner: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias after which squared norms are squared distances from the mean, about 1 at home."""
    width = len(inner)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    values = values.clamp(min=0)
    floor = torch.maximum(SHRINKAGE * values.mean(), torch.tensor(noise * math.sqrt(2 * width)).double())
    weight = (vectors / ((values + floor) * width).sqrt()).T / side.clip
    return weight, -weight @ side.mean


def _limits(rows: Rows, distances: Sequence[Tensor], account: Account, share: float) -> list[float]:
    """Return within which distance `HOME` of all patients lie, by each gate, from noisy counts."""
    if not distances:
        return []
    counted = []
    for squared in distances:
        nobody = torch.zeros(_DISTANCES, dtype=torch.float64)
        counted.append(nobody.index_add_(0, _place(squared), rows.weights))
    part, sensitivity = share * DISTANCES, math.sqrt(len(counted))
    noisy = account.ask("distances", torch.stack(counted), part, sensitivity)
    return [_limit(counts_of, rows.patients, account.deviation(part, sensitivity)) for counts_of in noisy]


def _place(squared: Tensor) -> Tensor:
    """Return the bin of each distance."""
    octave = torch.nan_to_num(squared, nan=0.0).clamp(min=2.0**_NEAREST).log2() - _NEAREST
    return (octave * _PER_OCTAVE).floor().clamp(0, _DISTANCES - 1).long()


def _limit(noisy: Tensor, patients: float, deviation: float) -> float:
    """Return within which distance `HOME` of patients lie, from noisy counts `(_DISTANCES,)` with this deviation."""
    run = run_of(noisy, deviation)
    if run is None:
        return _USUAL
    beyond = noisy[run].flip(0).cumsum(0)
    enough = (beyond > (1 - HOME) * patients).nonzero()
    top = run.stop - 1 - (int(enough[0]) if len(enough) else 0)
    return float(2.0 ** (_NEAREST + (top + 1) / _PER_OCTAVE))
