"""`evaluate`: measure all candidates on this site's data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import BaseModel

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.errors import SutureError
from suture_contract.kinds import CANDIDATES
from suture_worker import files
from suture_worker.compute.assignment import TaskWork
from suture_worker.compute.shards import ShareFolder
from suture_worker.egress import shown
from suture_worker.egress.release_check import ReleaseCheck, Released, read_document
from suture_worker.egress.shown import HeldResult, Section
from suture_worker.folder import DOCUMENT, TaskFolder
from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import EvaluateSpec, FileRef, LeasedTask


class Evaluate(TaskKind):
    """The site's side of `evaluate`."""

    spec_model = EvaluateSpec
    action = "evaluate"
    documents: ClassVar[Mapping[str, type[BaseModel]]] = {"document": Evaluation}
    splits = ("validation", "test")

    def start(self, spec: EvaluateSpec) -> Mapping[str, FileRef]:
        """The fitted candidates."""
        return spec.candidates.files

    def candidates(self, folder: TaskFolder) -> int | None:
        """Return how many candidates the hub has sent, for people to see; the work checks the file."""
        try:
            return len(read_document(CandidateSet, folder.candidates / CANDIDATES).candidates)
        except SutureError:
            return None

    def steps(self, spec: EvaluateSpec) -> tuple[str, ...]:
        """One pass over the data."""
        return ("evaluate",)

    def do(self, work: TaskWork, spec: EvaluateSpec) -> None:
        """Measure, or do a share of it."""
        from suture_stitching.ensemble.fitted import FitResult
        from suture_stitching.evaluation.evaluate import evaluate, evaluate_share

        folder, terms = work.folder, work.folder.terms
        fitted = FitResult.load(folder.candidates)
        if isinstance(folder, ShareFolder):
            evaluate_share(
                work.members,
                fitted,
                work.dataset,
                folder.share,
                device=work.run.device,
                progress=work.report,
                checkpoint=folder.checkpoint,
                metrics=spec.metrics,
            )
            return
        evaluation = evaluate(
            work.members,
            fitted,
            work.dataset,
            own=spec.own,
            device=work.run.device,
            progress=work.report,
            checkpoint=folder.checkpoint,
            privacy=terms.privacy,
            privacy_share=terms.share,
            metrics=spec.metrics,
            fewest=work.run.min_per_class,
        )
        files.write(folder.results / DOCUMENT, evaluation.model_dump_json(by_alias=True))

    def shown(self, held: HeldResult) -> Iterator[Section]:
        """Numbers of each candidate."""
        return shown.evaluation(held)

    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: EvaluateSpec, folder: TaskFolder) -> Released:
        """Bounded numbers about the candidates of the job."""
        return gate.evaluation(spec, folder)


KIND = Evaluate()
