"""Whether models can be combined, and what the ensemble of them reads and gives (torch-free).

An ensemble reads one input, from which every member's own is computed. Where members differ it is the richer one: the
largest size that any of them fixes, colour rather than grey, every channel that one of them names. So nothing is lost
before the member that needs it, and what the ensemble reads depends on its members alone, not on whose data come in.
"""

from __future__ import annotations

from collections.abc import Sequence

from suture_contract.documents import CandidateSet, Report
from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec, Lineage, ModelMetadata, OutputSpec
from suture_contract.naming import alike, spelt

PAGE = "docs/suture-json.md"
#: What can be said of two names that fold to the same.
WRITTEN = "differ only in case, spaces or Unicode form"
#: Weights of red, green and blue in a grey value (ITU-R BT.601, luma).
LUMA = (0.299, 0.587, 0.114)


def incompatibilities(models: Sequence[tuple[str, ModelMetadata]]) -> list[str]:
    """Say why these models cannot be combined, one sentence each; empty when they can.

    `models` are (name, metadata). They need one task and one input of the same kind and number of spatial axes; sizes
    may differ, and so may channels where one can be computed from the other (`channel_weights`). Labels are matched by
    name and may differ, but not in how they are written only.
    """
    if len(models) < 2:
        return ["a stitch needs at least two models"]
    problems = [
        f"{name} has several inputs or outputs; only one of each can be stitched"
        for name, metadata in models
        if len(metadata.inputs) != 1 or len(metadata.outputs) != 1
    ]
    problems += [
        f"{name} reads {_input(metadata).dtype}; only models that read float32 can be stitched: export it so, with "
        "other numbers made of these in its forward()"
        for name, metadata in models
        if _input(metadata).dtype != "float32"
    ]
    (first_name, first), *rest = models
    ours = _input(first)
    for name, metadata in rest:
        theirs = _input(metadata)
        if metadata.task != first.task:
            problems.append(f"{first_name} does {first.task}, {name} does {metadata.task}")
            continue
        if ours.format != theirs.format:
            problems.append(f"{first_name} reads {ours.format}, {name} reads {theirs.format}")
        if len(ours.spatial_shape) != len(theirs.spatial_shape):
            problems.append(f"{first_name} reads {_size(ours)}, {name} reads {_size(theirs)}")
        outputs = [next(iter(model.outputs.values())).num_channels for model in (first, metadata)]
        if first.task == "regression" and outputs[0] != outputs[1]:
            problems.append(f"{first_name} predicts {outputs[0]} value(s), {name} {outputs[1]}")
    labels = [(name, metadata.labels or ()) for name, metadata in models]
    channels = [(name, _input(metadata).channels or ()) for name, metadata in models]
    problems += [*_differing_spellings("label", labels), *_differing_spellings("channel", channels)]
    return problems or _differing_inputs([(name, _input(metadata)) for name, metadata in models])


def check_labels(labels: Sequence[str]) -> None:
    """Raise `SutureError` `metadata.labels_alike` if two labels of one model would be taken for the same."""
    for label, other in alike(labels)[:1]:
        raise SutureError(
            "metadata.labels_alike",
            f"the labels {spelt(label)} and {spelt(other)} {WRITTEN}",
            where="labels",
            hint=f"rename one so that people can tell them apart, see {PAGE}",
        )


def ensemble_input(inputs: Sequence[InputSpec]) -> InputSpec:
    """Return what an ensemble of models with these (compatible) inputs reads, before anyone's preprocessing.

    A size is the largest that is fixed, and free where it is free for all.
    """
    sizes = zip(*(spec.spatial_shape for spec in inputs), strict=True)
    widest = max(inputs, key=lambda spec: spec.num_channels)
    names = _all_names(inputs) or widest.channels
    return inputs[0].model_copy(
        update={
            "num_channels": len(names) if names else widest.num_channels,
            "channels": names,
            "spatial_shape": tuple(max((size for size in own if size is not None), default=None) for own in sizes),
            "value_range": next((spec.value_range for spec in inputs if spec.value_range is not None), None),
            "preprocessing": None,
            "dtype": "float32",
        }
    )


def ensemble_output(members: Sequence[ModelMetadata], labels: Sequence[str] | None) -> OutputSpec:
    """Return what an ensemble of these gives: probabilities of `labels` (masks at the input's size), or values."""
    first = next(iter(members[0].outputs.values()))
    if labels is None:
        return first
    read = ensemble_input([_input(metadata) for metadata in members])
    spatial = read.spatial_shape if members[0].task == "segmentation" else ()
    return OutputSpec(format="probabilities", num_channels=len(labels), spatial_shape=spatial)


def site_prior(members: Sequence[ModelMetadata], own: int | None) -> tuple[float, ...] | None:
    """Return the shares of the ensemble's labels that the member `own` declares; 0 for labels it does not know.

    They are public with that model, so they tell nothing of data. None for other tasks than classification, and where
    a member declares none: then its own cannot be divided out.
    """
    if own is None or any(member.label_prior is None for member in members):
        return None
    labels = dict.fromkeys(label for member in members for label in member.labels or ())
    return tuple((members[own].label_prior or {}).get(label, 0.0) for label in labels)


def describe_ensemble(members: Sequence[ModelMetadata], candidates: CandidateSet, report: Report) -> ModelMetadata:
    """Return the `suture.json` of the model that `report` chose: from its numbers and the members', without free text.

    `candidates` are those the report is about.
    """
    licences = sorted({member.license for member in members})
    chosen = next(candidate for candidate in report.candidates if candidate.id == report.chosen)
    return ModelMetadata(
        schema_="suture.model/1",
        task=candidates.task,
        inputs={next(iter(members[0].inputs)): ensemble_input([_input(member) for member in members])},
        outputs={next(iter(members[0].outputs)): ensemble_output(members, candidates.labels)},
        labels=candidates.labels,
        label_prior=_label_prior(candidates, report.chosen),
        license=licences[0] if len(licences) == 1 else " AND ".join(f"({licence})" for licence in licences)[:200],
        eval_metrics={f"{report.parties[party].metric} at {party}": value for party, value in chosen.metrics.items()},
        lineage=Lineage(
            job=report.lineage.job,
            requester=report.requester,
            members=report.lineage.members,
            candidate=report.chosen,
            privacy=report.privacy,
            trusted=report.trusted,
        ),
    )


def _label_prior(candidates: CandidateSet, chosen: str) -> dict[str, float] | None:
    """Return the shares of labels that the chosen candidate's probabilities assume, None where nobody can say."""
    shares = next(candidate.site_prior for candidate in candidates.candidates if candidate.id == chosen)
    return None if shares is None else dict(zip(candidates.labels or (), shares, strict=True))


def channel_weights(
    have: tuple[int, Sequence[str] | None], want: tuple[int, Sequence[str] | None], format: str = "image"
) -> list[list[float]] | None:
    """Return the matrix (wanted, had) that makes wanted channels out of those there are; None where they are the same.

    `have` and `want` are a number of channels and their names, if known. Channels are selected by name; a grey image
    becomes a colour image by repeating it, a colour image grey by `LUMA`. Raises `ValueError` saying what is missing.
    """
    (n, own), (wanted, names) = have, want
    if own and names and (missing := [name for name in names if name not in own]) != list(names):
        if missing:
            raise ValueError(f"there is no channel '{missing[0]}'")
        if list(own) == list(names):
            return None
        return [[float(name == other) for other in own] for name in names]
    if own and names and format == "table":
        raise ValueError(f"there is no column '{names[0]}'")
    if n == wanted:
        return None
    if format == "image" and (n, wanted) == (1, 3):
        return [[1.0]] * 3
    if format == "image" and (n, wanted) == (3, 1):
        return [list(LUMA)]
    raise ValueError(f"{wanted} channel(s) cannot be made of {n}")


def _differing_spellings(kind: str, models: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Say which names of labels or channels were probably meant to be the same: they are matched by name alone."""
    return [
        f"the {kind} {spelt(our)} of {name} and {spelt(their)} of {another} {WRITTEN}: if they mean the same, publish "
        f"one model again with the other's {kind}s in its suture.json; if not, rename one"
        for index, (name, ours) in enumerate(models)
        for another, theirs in models[index + 1 :]
        for our, their in alike(ours, theirs)[:3]
    ]


def _differing_inputs(inputs: Sequence[tuple[str, InputSpec]]) -> list[str]:
    """Say which inputs cannot be computed from the ensemble's; all have the same kind and number of axes."""
    problems = []
    whole = ensemble_input([spec for _, spec in inputs])
    widest = max(inputs, key=lambda entry: entry[1].num_channels)
    for name, spec in inputs:
        try:
            channel_weights((whole.num_channels, whole.channels), (spec.num_channels, spec.channels), spec.format)
        except ValueError as error:
            problems.append(
                f"{widest[0]} reads {widest[1].num_channels} channel(s), {name} reads {spec.num_channels}: {error} "
                "(only colour and grey images are converted; other channels are found by the names in `channels`)"
            )
    unnamed = [name for name, spec in inputs if not spec.channels]
    if whole.format == "table" and whole.num_channels > 1 and 0 < len(unnamed) < len(inputs):
        named = next(name for name, spec in inputs if spec.channels)
        problems.append(
            f"{named} names the columns it reads, {unnamed[0]} does not, so their order could differ: export "
            f"{unnamed[0]} again with --channels"
        )
    stated = {name: spec.value_range is not None for name, spec in inputs}
    if len(set(stated.values())) > 1 and whole.format != "table":
        with_range = next(name for name, has_range in stated.items() if has_range)
        without = next(name for name, has_range in stated.items() if not has_range)
        problems.append(f"{with_range} says the range of the values it reads (`value_range`), {without} does not")
    return problems


def _all_names(inputs: Sequence[InputSpec]) -> tuple[str, ...] | None:
    """Return every channel that is named, first seen first; None where not all are, or no two members' overlap."""
    named = [spec.channels for spec in inputs if spec.channels]
    union = tuple(dict.fromkeys(name for own in named for name in own))
    overlap = len(union) < sum(map(len, named)) or inputs[0].format == "table"
    return union if union and len(named) == len(inputs) and overlap else None


def _input(metadata: ModelMetadata) -> InputSpec:
    return next(iter(metadata.inputs.values()))


def _size(spec: InputSpec) -> str:
    sizes = " x ".join("any" if size is None else str(size) for size in spec.spatial_shape)
    return f"{len(spec.spatial_shape)}-D inputs of size {sizes}" if sizes else "inputs without spatial size"
