"""`compose`: choose by all evaluations, and compose the chosen candidate; reads no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from suture_contract.kinds import METADATA, MODEL
from suture_contract.model.metadata import ModelMetadata
from suture_worker.compute.assignment import TaskWork
from suture_worker.compute.checking import check_model
from suture_worker.egress.release_check import ReleaseCheck, Released
from suture_worker.folder import TaskFolder
from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import ComposeSpec, FileRef, LeasedTask


class Compose(TaskKind):
    """The site's side of `compose`."""

    spec_model = ComposeSpec
    action = "fit"
    documents: ClassVar[Mapping[str, type[BaseModel]]] = {}
    reads_data = False

    def start(self, spec: ComposeSpec) -> Mapping[str, FileRef]:
        """The fitted candidates."""
        return spec.candidates.files

    def do(self, work: TaskWork, spec: ComposeSpec) -> None:
        """Compose as all evaluations say."""
        from suture_stitching.ensemble.compose import compose
        from suture_stitching.ensemble.fitted import FitResult
        from suture_stitching.evaluation.select import choose
        from suture_stitching.portable.runtime import save

        # The gate makes report and metadata itself, from the same evaluations by the same choice.
        fitted = FitResult.load(work.folder.candidates)
        choice = choose(fitted.candidates, spec.evaluations, requester=work.task.job.requester)
        composed = compose(work.members, fitted, choice.chosen)
        save(composed.graph, composed.tensors, work.folder.results / MODEL)
        work.finish({"chosen": choice.chosen})

    def released(self, gate: ReleaseCheck, task: LeasedTask, spec: ComposeSpec, folder: TaskFolder) -> Released:
        """The model, and what the gate makes of what the hub has sent."""
        named, document = gate.composition(task, spec, folder)
        model, metadata = named[MODEL], named[METADATA]
        assert isinstance(model, Path)
        assert isinstance(metadata, bytes)
        check_model(model, ModelMetadata.from_json(metadata, where=METADATA))
        return named, document


KIND = Compose()
