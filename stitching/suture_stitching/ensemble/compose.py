"""A chosen candidate becomes one portable model: members, stitches, preprocessing and averaging in one graph."""

from __future__ import annotations

from collections.abc import Sequence

from suture_contract.documents import Candidate
from suture_contract.model.graph import TENSOR, Ref, prune
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member
from suture_stitching.ensemble.merge import Merge
from suture_stitching.objectives import objective_of
from suture_stitching.portable.runtime import PortableModel


def compose(members: Sequence[Member], fitted: FitResult, candidate_id: str) -> PortableModel:
    """Return the candidate as one model, whose `suture.json` is that of `describe_ensemble` (`suture_contract`).

    It reads the members' `shared_input`, before anyone's preprocessing. Its output is that of the candidate evaluated
    piece by piece, to rounding. Write it with `portable.runtime.save`.
    Raises `SutureError` (`candidate.unknown`, `candidates.*`).
    """
    candidate = fitted.candidate(candidate_id)
    objective = objective_of([member.metadata for member in members], ())
    merge = Merge(members, objective, fitted.stitches, candidate.site_prior)
    (output,) = outputs_of(merge, fitted, [candidate])
    graph = prune(merge.graph(output))
    named = {str(node.args[0]) for node in graph.nodes if node.op == TENSOR}
    return PortableModel(graph, {name: tensor for name, tensor in merge.tensors.items() if name in named})


def outputs_of(merge: Merge, fitted: FitResult, candidates: Sequence[Candidate]) -> tuple[Ref, ...]:
    """Return the nodes of the candidates' outputs in `merge`, building what is not there yet.

    Raises `SutureError` (`candidates.points`, `candidates.tensors`, `candidates.prior`) for what the members cannot be.
    """
    points = fitted.points(merge.members)
    if any(candidate.site_prior is not None for candidate in candidates):
        merge.check_priors()
    return tuple(
        merge.candidate(
            fitted.joins(points, candidate),
            fitted.gate(points, candidate),
            candidate.members,
            site_prior=candidate.site_prior is not None,
        )
        for candidate in candidates
    )
