"""What one seed's methods gave: a score per test sample and party, and each requester's fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import CandidateKind, Evaluation, Report
from suture_local.study.scores import Floats
from suture_stitching.fitting.fit import FitOptions, FitResult

#: Before the name of a method that has, at each party, what is made without it.
LEFT_OUT_PREFIX = "left out: "


@dataclass(frozen=True)
class MethodScores:
    """One method at one party: a score per test sample, and metrics that are no means of such scores."""

    scores: Floats
    besides: dict[str, float | None]


@dataclass(frozen=True)
class StitchedScores:
    """What a requester's fit gave: which candidate was chosen, and all candidates' metrics on test data."""

    chosen: str
    kind: CandidateKind
    refined: bool
    gated: bool
    candidates: dict[str, dict[str, float]]
    kinds: Mapping[str, str]
    #: Not dominated on the parties' validation data.
    front: tuple[str, ...]
    hypervolume: float
    #: The same of the members alone and their plain ensemble.
    plain_hypervolume: float
    options: dict[str, Any]


@dataclass
class SeedResult:
    """All methods for one seed; those of one requester have its name behind a colon."""

    seed: int
    methods: dict[str, dict[str, MethodScores]] = field(default_factory=dict)
    stitched: dict[str, StitchedScores] = field(default_factory=dict)
    #: By requester, what all parties would read of its job.
    reports: dict[str, Report] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    #: By party, whose each test sample is, where that is known.
    patients: dict[str, NDArray[np.int64]] = field(default_factory=dict)


def stitched(
    fitted: FitResult, evaluations: Mapping[str, Evaluation], chosen: str, options: FitOptions
) -> StitchedScores:
    """Return what a requester's fit, as all parties evaluated it, gave."""
    ids = [candidate.id for candidate in fitted.candidates.candidates]
    kinds = {candidate.id: candidate.kind for candidate in fitted.candidates.candidates}
    values = {
        split: np.array(
            [[evaluation.splits[split].scores[id].value for evaluation in evaluations.values()] for id in ids]
        )
        for split in ("validation", "test")
    }
    made = np.array([kinds[id] not in ("single", "ensemble") for id in ids])
    kept = moocore.is_nondominated(values["validation"], maximise=True, keep_weakly=False)
    plain = np.zeros(len(ids), dtype=bool)
    plain[~made] = moocore.is_nondominated(values["validation"][~made], maximise=True, keep_weakly=False)
    own = fitted.candidate(chosen)
    return StitchedScores(
        chosen=chosen,
        kind=own.kind,
        refined=own.refined,
        gated=own.kind == "stitched" and own.gate is not None,
        candidates={
            id: dict(zip(evaluations, row.tolist(), strict=True)) for id, row in zip(ids, values["test"], strict=True)
        },
        kinds=kinds,
        front=tuple(id for id, keep in zip(ids, kept, strict=True) if keep),
        hypervolume=hypervolume(values["test"][kept]),
        plain_hypervolume=hypervolume(values["test"][plain]),
        options=options.model_dump(mode="json"),
    )


def hypervolume(points: Any) -> float:
    """Return the hypervolume of points `(n, parties)` over the reference point 0."""
    array = np.atleast_2d(np.asarray(points, dtype=np.float64))
    return float(moocore.hypervolume(array, ref=np.zeros(array.shape[1]), maximise=True))
