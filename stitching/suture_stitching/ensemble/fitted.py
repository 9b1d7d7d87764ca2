"""What a fit produces: the candidates and their tensors, on disk `candidates.json` and `stitches.safetensors`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from suture_contract.documents import Candidate, CandidateSet
from suture_contract.documents import Match as MatchDocument
from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.kinds import CANDIDATES, STITCHES
from suture_stitching.ensemble.members import Member
from suture_stitching.ensemble.merge import GateTensors, Join
from suture_stitching.features.points import StitchPoint
from suture_stitching.portable.layout import settled
from suture_stitching.portable.tensors import save_tensors


@dataclass(frozen=True)
class FitResult:
    """Candidates, their float32 tensors by name, and the inputs' shape `(C, *spatial)` they were fitted at."""

    candidates: CandidateSet
    stitches: dict[str, Tensor]
    input_shape: tuple[int, ...]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both files into `folder`; each replaces an older one in one step."""
        folder = Path(folder)
        with replacing(folder / CANDIDATES) as path:
            path.write_text(self.candidates.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        with replacing(folder / STITCHES) as path:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.stitches.items()}
            save_tensors(tensors, path, {"input_shape": ",".join(map(str, self.input_shape))})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> FitResult:
        """Read both files; raises `SutureError` (`candidates.invalid`, `candidates.tensors`)."""
        folder = Path(folder)
        try:
            candidates = CandidateSet.model_validate_json((folder / CANDIDATES).read_bytes())
        except (OSError, ValidationError) as error:
            raise SutureError("candidates.invalid", _first_line(error), where=CANDIDATES) from None
        try:
            with safe_open(folder / STITCHES, framework="pt") as file:
                stitches = {name: settled(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
                shape = (file.metadata() or {}).get("input_shape", "")
            sizes = tuple(int(size) for size in shape.split(","))
        except (OSError, SafetensorError, ValueError) as error:
            raise SutureError("candidates.tensors", _first_line(error), where=STITCHES) from None
        return cls(candidates, stitches, sizes)

    def candidate(self, id: str) -> Candidate:
        """Return one candidate; raises `SutureError` `candidate.unknown`."""
        for candidate in self.candidates.candidates:
            if candidate.id == id:
                return candidate
        raise SutureError("candidate.unknown", f"there is no candidate {id}", hint="see candidates.json")

    def joins(self, points: Sequence[Mapping[str, StitchPoint]], candidate: Candidate) -> list[Join]:
        """Return where and how a candidate mixes the members with these `points`, after checking that all of it fits.

        Raises `SutureError` (`candidates.points`, `candidates.tensors`).
        """
        return [self._join(match, points) for match in candidate.matches]

    def gate(self, points: Sequence[Mapping[str, StitchPoint]], candidate: Candidate) -> GateTensors | None:
        """Return a candidate's gate, if it has one, checked as its joins are."""
        if (gate := candidate.gate) is None:
            return None
        matched = _points_named(gate.points, points)
        width = sum(point.shape[0] for point in matched.values())
        rows = len(self.stitches[gate.bias]) if gate.bias in self.stitches and self.stitches[gate.bias].dim() else 0
        self._check(gate.weight, (min(rows, width), width))
        self._check(gate.bias, (min(rows, width),))
        return GateTensors(matched, gate.weight, gate.bias, gate.near, gate.far, gate.withdraws)

    def points(self, members: Sequence[Member]) -> list[dict[str, StitchPoint]]:
        """Return each member's stitch points by name; raises `SutureError` `candidates.members` for other members."""
        self.check_members(members)
        return [{point.name: point for point in member.points(self.input_shape)} for member in members]

    def check_members(self, members: Sequence[Member]) -> None:
        """Raise `SutureError` `candidates.members` unless these are the members that were fitted, in order."""
        if tuple(member.ref for member in members) != self.candidates.members:
            raise SutureError(
                "candidates.members",
                "these candidates were fitted for other models",
                where=CANDIDATES,
                hint="give the members in the order of candidates.json",
            )

    def _join(self, match: MatchDocument, points: Sequence[Mapping[str, StitchPoint]]) -> Join:
        matched = _points_named(match.points, points)
        stitches = {}
        for stitch in match.stitches:
            if not {stitch.source, stitch.target} <= matched.keys() or stitch.source == stitch.target:
                raise SutureError("candidates.points", "a stitch joins members that are not matched", where=CANDIDATES)
            width = matched[stitch.target].shape[0]
            self._check(stitch.weight, (width, matched[stitch.source].shape[0]))
            self._check(stitch.bias, (width,))
            stitches[stitch.source, stitch.target] = (stitch.weight, stitch.bias)
        wanted = {(source, target) for source in matched for target in matched if source != target}
        if len(matched) < 2 or stitches.keys() != wanted:
            raise SutureError("candidates.points", "a match needs a stitch for every ordered pair", where=CANDIDATES)
        _check_grids(matched)
        return Join(matched, match.alpha, stitches)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.stitches.get(name)
        fits = (
            tensor is not None
            and tensor.dtype == torch.float32
            and tuple(tensor.shape) == shape
            and bool(torch.isfinite(tensor).all())
        )
        if not fits:
            raise SutureError("candidates.tensors", f"{name} is missing or is not as it should be", where=STITCHES)


def _points_named(names: Mapping[str, str], points: Sequence[Mapping[str, StitchPoint]]) -> dict[int, StitchPoint]:
    """Return the members' points of these names."""
    by_member = {}
    for key, name in names.items():
        member = int(key)
        if member >= len(points) or name not in points[member]:
            raise SutureError("candidates.points", f"member {member} has no stitch point {name}", where=CANDIDATES)
        by_member[member] = points[member][name]
    return by_member


def _check_grids(points: Mapping[int, StitchPoint]) -> None:
    ranks = {len(point.shape) - 1 for point in points.values() if len(point.shape) > 1}
    if len(ranks) > 1:
        raise SutureError("candidates.points", f"maps of {min(ranks)} and {max(ranks)} dimensions", where=CANDIDATES)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
