"""What a party may add to another's fit without its data: moments of the features at the places of the stitches.

    asked = placements(fitted.candidates)                       # at the requester: where stitches are
    moments = contribute(members, dataset, asked)               # at the other party, on its own data
    moments.save("moments.safetensors")
    again = fit(members, own_data, contributions=[Contribution.load("moments.safetensors")])

Moments are sums over samples: means and second moments of features, no sample. Few samples would show through, so there
is a least number of patients; and `ClippedPrivacy` adds noise, after which nobody can be sure whether any one patient
was among them. That does not hide what a whole data set has in common.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from suture_contract.contributions import SPLITS, ClippedPrivacy, Described, SplitOfFit
from suture_contract.documents import CandidateSet, MemberIndex, Point
from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_stitching.data import Dataset
from suture_stitching.ensemble.members import Member, check_inputs
from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.moments import Moments, rows
from suture_stitching.features.points import StitchPoint
from suture_stitching.fitting.carriers import groups_of, kept, screened, tallied
from suture_stitching.objectives import objective_of
from suture_stitching.portable.tensors import save_tensors
from suture_stitching.privacy.account import noise_of
from suture_stitching.privacy.noise import normal
from suture_stitching.privacy.scale import clipped
from suture_stitching.running.accumulator import Accumulator
from suture_stitching.running.checkpoint import Checkpoint, Folder, fingerprint
from suture_stitching.running.device import Precision, runner_for
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.progress import OnProgress, ignore
from suture_stitching.running.tracker import Tracker, UnitCost

Placement: TypeAlias = Mapping[MemberIndex, Point]
#: Which placement, on the grid of which of its members' maps, of which split.
_Key: TypeAlias = tuple[int, tuple[int, ...], SplitOfFit]
#: By placement and grid: rows of all members' features side by side.
_Sides: TypeAlias = dict[tuple[int, tuple[int, ...]], Tensor]
#: Sums up a batch of a split, whose samples have these places in it.
_Work: TypeAlias = Callable[[SplitOfFit, Tensor, Tensor], Accumulator]
#: The largest distance of `(x, x x')` from `(y, y y')` for x, y of norm 1 at most: at an angle of 120 degrees.
_SENSITIVITY = math.sqrt(4.5)

__all__ = ["ClippedPrivacy", "Contribution", "Described", "Placement", "contribute", "noise_of", "placements"]


@dataclass(frozen=True)
class Contribution:
    """One party's moments, per position as one row; each sample counts as one, however many positions it has."""

    described: Described
    moments: Mapping[_Key, Moments]

    def norms(self) -> tuple[float, ...]:
        """Return for each placement the root of the features' mean squared norm, as `ClippedPrivacy` wants them."""
        norms = []
        for index in range(len(self.described.placements)):
            moments = next(m for (place, _, split), m in self.moments.items() if place == index and split == "train")
            norms.append(float(moments.covariance.diagonal().sum() + moments.mean.square().sum()) ** 0.5 or 1.0)
        return tuple(norms)

    def pair(self, points: Mapping[int, StitchPoint], grid: Sequence[int]) -> tuple[Moments, Moments] | None:
        """Return the moments of a match on a grid, of `train` and `validation`; None if they were not contributed."""
        names = {str(member): point.name for member, point in points.items()}
        for index, placement in enumerate(self.described.placements):
            train, validation = (self.moments.get((index, tuple(grid), split)) for split in SPLITS)
            if dict(placement) == names and train is not None and validation is not None:
                return train, validation
        return None

    def check_members(self, members: Sequence[Member]) -> None:
        """Raise `SutureError` `moments.members` unless these are the members whose features were measured."""
        if tuple(member.ref.sha256 for member in members) != self.described.members:
            raise SutureError(
                "moments.members", "these moments are of other models", hint="ask for them again, for these models"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file in the place of an older one: float32, of each scatter the upper triangle."""
        tensors: dict[str, Tensor] = {}
        for key, moments in self.moments.items():
            upper = moments.scatter[_upper(len(moments.mean))]
            tensors |= {f"{_name(key)}.mean": moments.mean.float(), f"{_name(key)}.scatter": upper.float()}
        with replacing(Path(path)) as place:
            save_tensors(tensors, place, {"described": self.described.to_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Contribution:
        """Read a file that `save` wrote; raises `SutureError` `moments.invalid`."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            described = Described.model_validate_json(metadata.get("described", ""))
            keys = [_key(name.removesuffix(".mean")) for name in tensors if name.endswith(".mean")]
            moments = {key: _checked(described.n[key[2]], tensors, _name(key)) for key in keys}
        except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as error:
            raise SutureError("moments.invalid", type(error).__name__, where=str(path)) from None
        return cls(described, moments)


def placements(candidates: CandidateSet) -> tuple[dict[str, str], ...]:
    """Return where the stitched candidates join their members, each match once."""
    places: list[dict[str, str]] = []
    for candidate in candidates.candidates:
        for match in candidate.matches:
            if match.points not in places:
                places.append(dict(match.points))
    return tuple(places)


def contribute(
    members: Sequence[Member],
    dataset: Dataset,
    asked: Sequence[Placement],
    *,
    min_patients: int = 11,
    privacy: ClippedPrivacy | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
    checkpoint: Folder | None = None,
) -> Contribution:
    """Return the moments of `members` at the placements `asked`, over the `train` and `validation` splits of `dataset`.

    With `privacy` they are noisy; its noise is drawn anew every time, and what several contributions of the same data
    tell adds up. Sums so far, without noise, are kept in the folder `checkpoint`, so that work that was killed goes on;
    it can be removed afterwards. Raises `SutureError`: `moments.too_few_samples`, `moments.placements` for a place that
    there is not, `moments.clips`, and those of `fit`.
    """
    check_inputs(members, dataset)
    objective = objective_of([member.metadata for member in members], dataset.labels, where=dataset.where)
    _check(dataset, asked, min_patients, privacy)
    tracker, runner = Tracker(progress), runner_for(members, device, precision, privacy)
    settings = {
        "asked": [dict(placement) for placement in asked],
        "privacy": None if privacy is None else privacy.model_dump(mode="json"),
        "device": runner.device.type,
        "precision": runner.precision,
    }
    key = "" if checkpoint is None else fingerprint("contribute", members, dataset, settings)
    passes = FeaturePass(members, dataset, runner, tracker, Checkpoint(checkpoint, key))
    batches = {split: passes.number_of_batches(split) for split in SPLITS}
    tracker.expect("solve", [UnitCost()] * sum(batches.values()))
    matches = _matches(members, asked, passes.shape)
    features = _side_by_side(passes, Merge(members, objective), matches)
    patients = {split: passes.patients(split) for split in SPLITS}
    work = _exact(features, patients) if privacy is None else _clipped(features, patients, privacy.clips)
    sums = passes.summed("solve", "contribution", work, batches)
    tracker.end("solve")
    moments = {_key(name): total for name, total in sums.moments.items()}
    if privacy is None:
        moments = {key: _screened(total, sums.sums[_name(key)], min_patients) for key, total in moments.items()}
    people = {split: float(dataset.patients(split) if privacy is not None else dataset.n(split)) for split in SPLITS}
    moments = {key: total.to("cpu").scaled(people[key[2]]) for key, total in moments.items()}
    if any(not bool(total.finite.all()) for total in moments.values()):
        raise SutureError("features.not_finite", "a model gives NaN or infinity on this data", where=dataset.where)
    if privacy is not None:
        moments = _noisy(moments, privacy)
        moments = {key: total.scaled(float(dataset.n(key[2]))) for key, total in moments.items()}
    described = Described(
        members=tuple(member.ref.sha256 for member in members),
        placements=tuple(dict(placement) for placement in asked),
        n={"train": dataset.n("train"), "validation": dataset.n("validation")},
        privacy=privacy,
    )
    return Contribution(described, moments)


def _check(dataset: Dataset, asked: Sequence[Placement], min_patients: int, privacy: ClippedPrivacy | None) -> None:
    """Raise `SutureError` (`moments.*`, `dataset.*`) where moments would be of too few, or noise of another shape."""
    if small := next((split for split in SPLITS if dataset.patients(split) < min_patients), None):
        raise SutureError(
            "moments.too_few_samples",
            f"the {small} split has samples of fewer than {min_patients} patients",
            where=dataset.where,
        )
    if privacy is not None:
        dataset.check_separate()
    if privacy is not None and len(privacy.clips) != len(asked):
        raise SutureError("moments.clips", f"{len(privacy.clips)} clips for {len(asked)} placements")


def _side_by_side(
    passes: FeaturePass, merge: Merge, matches: Sequence[Mapping[int, StitchPoint]]
) -> Callable[[Tensor], _Sides]:
    """Return what gives the matched features of a batch, each match on each of its grids as rows."""
    refs = {(m, p.name): merge.point(merge.native, m, p).node for points in matches for m, p in points.items()}
    wanted = sorted(set(refs.values()))
    model = passes.model_of(merge, wanted)

    def features(x: Tensor) -> _Sides:
        values = dict(passes.runner.stream(model, wanted, x))
        return {
            (index, grid): torch.cat(
                [rows(values[refs[m, p.name]].float(), grid, p.channel_axis) for m, p in points.items()], 1
            )
            for index, points in enumerate(matches)
            for grid in _grids(points)
        }

    return features


def _exact(features: Callable[[Tensor], _Sides], patients: Mapping[SplitOfFit, NDArray[np.int64]]) -> _Work:
    """Return what sums a batch's features as they are, and counts which patients carry them."""
    groups = {split: groups_of(whose) for split, whose in patients.items()}

    def exact(split: SplitOfFit, x: Tensor, places: Tensor) -> Accumulator:
        sums = Accumulator()
        for (index, grid), side in features(x).items():
            name = _name((index, grid, split))
            sums.see(name, side)
            sums.placed[name] = tallied(side.reshape(len(x), -1, side.shape[1]), groups[split][places])
        return sums

    return exact


def _clipped(
    features: Callable[[Tensor], _Sides], patients: Mapping[SplitOfFit, NDArray[np.int64]], clips: Sequence[float]
) -> _Work:
    """Return what sums a batch's features, each clipped and each patient counted once."""
    weights = {split: torch.from_numpy(_weights(whose)) for split, whose in patients.items()}

    def clipped_features(split: SplitOfFit, x: Tensor, places: Tensor) -> Accumulator:
        # One sample at a time where one must not show: a network may mix those that it is given together.
        sums, parts = Accumulator(), [features(part) for part in torch.split(x, 1)]
        for index, grid in parts[0]:
            clip = clips[index]
            side = clip * clipped(torch.cat([part[index, grid] for part in parts]), clip)
            each = len(side) // len(x)
            counted = weights[split][places].to(side).repeat_interleave(each) / each
            sums.moments[_name((index, grid, split))] = Moments.weighted(side, counted)
        return sums

    return clipped_features


def _screened(moments: Moments, tally: Tensor, least: int) -> Moments:
    """Return the moments of what at least so many patients carry of all members' features side by side."""
    column = {0: slice(0, len(moments.mean))}
    return screened(moments, kept(tally, column, least), column)


def _weights(whose: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what each sample `(N,)` counts for: those of a patient together 1."""
    _, patient, samples = np.unique(whose, return_inverse=True, return_counts=True)
    return 1.0 / samples[patient.reshape(-1)]


def _noisy(moments: Mapping[_Key, Moments], privacy: ClippedPrivacy) -> dict[_Key, Moments]:
    """Add noise to sums of features and of their products, all of one split together as one query.

    A patient is in one split only, and counts once in every sum there: features in units of their clip, averaged over
    samples and positions. The numbers of samples are told as they are.
    """
    per_split = len(moments) / len({split for _, _, split in moments})
    sigma = noise_of(privacy.epsilon, privacy.delta, _SENSITIVITY * math.sqrt(per_split))
    noisy = {}
    for key, exact in moments.items():
        clip, width = privacy.clips[key[0]], len(exact.mean)
        noise = sigma / exact.n * normal((width, width + 1))
        mean = exact.mean + clip * noise[:, 0]
        products = exact.covariance + torch.outer(exact.mean, exact.mean) + clip**2 * noise[:, 1:]
        covariance = (products + products.T) / 2 - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        noisy[key] = Moments(exact.n, mean, exact.n * (vectors * values.clamp(min=0)) @ vectors.T)
    return noisy


def _matches(
    members: Sequence[Member], asked: Sequence[Placement], shape: Sequence[int]
) -> list[dict[int, StitchPoint]]:
    points = [{point.name: point for point in member.points(shape)} for member in members]
    matches = []
    for placement in asked:
        try:
            matches.append({int(key): points[int(key)][name] for key, name in _by_member(placement.items())})
        except (KeyError, IndexError):
            raise SutureError(
                "moments.placements", "a model has no such place", hint="ask with `placements` of the same models' fit"
            ) from None
    return matches


def _by_member(items: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(items, key=lambda item: int(item[0]))


def _grids(points: Mapping[int, StitchPoint]) -> list[tuple[int, ...]]:
    return sorted({tuple(point.shape[1:]) for point in points.values()})


def _name(key: _Key) -> str:
    index, grid, split = key
    return f"{index}.{'x'.join(map(str, grid)) or '1'}.{split}"


def _key(name: str) -> _Key:
    index, grid, split = name.split(".")
    for known in SPLITS:
        if split == known:
            return int(index), () if grid == "1" else tuple(map(int, grid.split("x"))), known
    raise ValueError(name)


def _checked(n: int, tensors: Mapping[str, Tensor], name: str) -> Moments:
    mean, upper = tensors[f"{name}.mean"], tensors[f"{name}.scatter"]
    width = len(mean)
    if mean.dim() != 1 or upper.shape != (width * (width + 1) // 2,) or {mean.dtype, upper.dtype} != {torch.float32}:
        raise ValueError(name)
    if not bool(torch.isfinite(mean).all() and torch.isfinite(upper).all()):
        raise ValueError(name)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    rows, columns = _upper(width)
    scatter[rows, columns] = scatter[columns, rows] = upper.double()
    return Moments(float(n), mean.double(), scatter)


def _upper(width: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(width, width)
    return rows, columns
