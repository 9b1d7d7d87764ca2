"""`fit`: learn candidates on this site's data, with what other parties have contributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import BaseModel

from suture_contract.documents import CandidateSet, FitDocument
from suture_contract.fit_options import FitOptions
from suture_contract.kinds import CANDIDATES, STITCHES, contributed_by
from suture_worker.compute import contributing
from suture_worker.compute.assignment import TaskWork
from suture_worker.compute.shards import ShareFolder
from suture_worker.egress import shown
from suture_worker.egress.release_check import ReleaseCheck, Released
from suture_worker.egress.shown import HeldResult, Section
from suture_worker.folder import TaskFolder
from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import FileRef, FitSpec, LeasedTask
from suture_worker.rules.inbox import Estimate


class Fit(TaskKind):
    """The site's side of `fit`."""

    spec_model = FitSpec
    action = "fit"
    documents: ClassVar[Mapping[str, type[BaseModel]]] = {"document": FitDocument, CANDIDATES: CandidateSet}

    def start(self, spec: FitSpec) -> Mapping[str, FileRef]:
        """What was contributed."""
        return {contributed_by(party): ref for party, ref in spec.contributions.items()}

    def tensors(self, takes: Estimate | None) -> Mapping[str, str]:
        """Stitches, and gates."""
        return {STITCHES: "fitted matrices, and means and covariances of your own network's features"}

    def steps(self, spec: FitSpec) -> tuple[str, ...]:
        """Reading features, and refining."""
        return ("capture", "refine") if FitOptions.read(spec.options).refine else ("capture",)

    def do(self, work: TaskWork, spec: FitSpec) -> None:
        """Fit, or do a share of it."""
        from suture_stitching.fitting.fit import FitResult, fit, fit_share

        folder, members, run = work.folder, work.members, work.run
        requester = work.task.job.requester
        own = next((index for index, member in enumerate(spec.members) if member.party == requester), None)
        options, terms = FitOptions.read(spec.options), folder.terms
        if isinstance(folder, ShareFolder):
            fit_share(
                members,
                work.dataset,
                "capture" if folder.step == "capture" else "refine",
                folder.share,
                options=options,
                device=run.device,
                progress=work.report,
                checkpoint=folder.checkpoint,
                own=own,
                min_patients=run.min_samples,
                privacy=terms.privacy,
            )
            return
        contributions = contributing.contributions(spec, members, folder)
        fitted = fit(
            members,
            work.dataset,
            options=options,
            device=run.device,
            progress=work.report,
            checkpoint=folder.checkpoint,
            contributions=tuple(contributions.values()),
            own=own,
            min_patients=run.min_samples,
            privacy=terms.privacy,
            share=terms.share,
        )
        candidates = contributing.with_contributors(fitted.candidates, contributions)
        candidates = candidates.model_copy(update={"patients": work.dataset.patients("train")})
        FitResult(candidates, fitted.stitches, fitted.input_shape).save(folder.results)
        work.finish({"n": fitted.candidates.n})

    def shown(self, held: HeldResult) -> Iterator[Section]:
        """Candidates, stitches and gates."""
        return shown.fit(held)

    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: FitSpec, folder: TaskFolder) -> Released:
        """Candidates and stitches of this task."""
        return gate.fit(task, spec, folder)


KIND = Fit()
