"""`suture.json` of a stitched ensemble: made from what the job already knows, so that it holds no free text (pure)."""

from __future__ import annotations

from suture_stitching.compatibility import ensemble_input, ensemble_output
from suture_stitching.documents import CandidateSet, Report
from suture_stitching.portable.metadata import Lineage, ModelMetadata
from suture_worker.lease import Task


def describe_ensemble(task: Task, candidates: CandidateSet, report: Report) -> ModelMetadata:
    """Return the metadata of the model that `report` chose; its numbers are those of the report."""
    members = task.spec.members
    input_name, output_name = next(iter(members[0].metadata.inputs)), next(iter(members[0].metadata.outputs))
    inputs = [next(iter(member.metadata.inputs.values())) for member in members]
    licences = sorted({member.metadata.license for member in members})
    chosen = next(candidate for candidate in report.candidates if candidate.id == report.chosen)
    return ModelMetadata(
        schema_="suture.model/1",
        task=candidates.task,
        inputs={input_name: ensemble_input(inputs)},
        outputs={output_name: ensemble_output([member.metadata for member in members], candidates.labels)},
        labels=candidates.labels,
        license=licences[0] if len(licences) == 1 else " AND ".join(f"({licence})" for licence in licences)[:200],
        eval_metrics={f"{report.parties[party].metric} at {party}": value for party, value in chosen.metrics.items()},
        lineage=Lineage(
            job=task.job.id,
            requester=task.job.requester,
            members=tuple(member.ref for member in members),
            candidate=report.chosen,
        ),
    )
