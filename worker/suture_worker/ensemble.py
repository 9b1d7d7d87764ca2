"""`suture.json` of a stitched ensemble: made from what the job already knows, so that it holds no free text (pure)."""

from __future__ import annotations

from suture_stitching.documents import CandidateSet, Report
from suture_stitching.portable.metadata import InputSpec, Lineage, ModelMetadata, OutputSpec
from suture_worker.lease import LeasedMember, Task


def describe_ensemble(task: Task, candidates: CandidateSet, report: Report) -> ModelMetadata:
    """Return the metadata of the model that `report` chose; its numbers are those of the report."""
    members = task.spec.members
    input_name, output_name = next(iter(members[0].metadata.inputs)), next(iter(members[0].metadata.outputs))
    licences = sorted({member.metadata.license for member in members})
    chosen = next(candidate for candidate in report.candidates if candidate.id == report.chosen)
    return ModelMetadata(
        schema_="suture.model/1",
        task=candidates.task,
        inputs={input_name: _input(members)},
        outputs={output_name: _output(members, candidates)},
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


def _input(members: tuple[LeasedMember, ...]) -> InputSpec:
    """What all members can read; each one's own normalisation is part of the composed graph."""
    inputs = [next(iter(member.metadata.inputs.values())) for member in members]
    shape = _shape([spec.spatial_shape for spec in inputs])
    value_range = next((spec.value_range for spec in inputs if spec.value_range is not None), None)
    return inputs[0].model_copy(
        update={"spatial_shape": shape, "preprocessing": None, "value_range": value_range, "dtype": "float32"}
    )


def _output(members: tuple[LeasedMember, ...], candidates: CandidateSet) -> OutputSpec:
    outputs = [next(iter(member.metadata.outputs.values())) for member in members]
    return OutputSpec(
        format="values" if candidates.labels is None else "probabilities",
        num_channels=outputs[0].num_channels if candidates.labels is None else len(candidates.labels),
        spatial_shape=_shape([spec.spatial_shape for spec in outputs]),
    )


def _shape(shapes: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
    """Return the sizes everyone takes: a fixed one where anyone's is fixed."""
    return tuple(next((size for size in sizes if size is not None), None) for sizes in zip(*shapes, strict=True))
