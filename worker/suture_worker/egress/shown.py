"""What is held, for the person who releases it: the documents as tables, the tensors by their sizes and ranges.

Made from the very bytes that would leave. What was left out of them is told by what the child had measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from suture_contract.contributions import ContributionDocument, Matched
from suture_contract.documents import (
    Candidate,
    CandidateSet,
    Evaluation,
    Gate,
    Interval,
    Score,
    SplitScores,
    Stitch,
    Subgroup,
)
from suture_contract.kinds import CANDIDATES, MOMENTS, STITCHES
from suture_contract.report.assumed import spent, trusts
from suture_contract.report.build import in_words_of, member_names
from suture_contract.report.clinical import NAMES as CLINICAL_NAMES
from suture_contract.report.trust import declared
from suture_contract.report.words import UNSTITCHED, Scale, contributed, scale_of
from suture_worker.config import SiteConfig
from suture_worker.egress.drawn import CurvePlot, Histogram, Strips, curve, histogram, strips
from suture_worker.egress.held import Held, Manifest
from suture_worker.egress.release_check import read_document
from suture_worker.folder import DOCUMENT, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask

#: What stands for a name where the document that ends a task has none.
UNNAMED = "document"


@dataclass(frozen=True)
class Section:
    """A table with what is said above and below it; one without rows is what is said alone.

    `prose` and `spare` are columns, as in `console.tables.layout`. `drawing` shows in a browser what the rows say.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    prose: Sequence[str] = ()
    spare: Sequence[str] = ()
    notes: Sequence[str] = ()
    drawing: Strips | Histogram | CurvePlot | None = None


@dataclass(frozen=True)
class TensorRange:
    """A tensor that would leave: its size, and the least and the largest of its numbers."""

    file: str
    name: str
    shape: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class HeldResult:
    """A held result with what there is at the site to read it by.

    `documents` are by the name of their file, `document` that which ends the task; `files` are where all parts lie.
    """

    task: LeasedTask
    folder: TaskFolder
    documents: Mapping[str, object]
    files: Mapping[str, Path]
    min_patients: int
    min_per_class: int
    decimals: int

    @property
    def terms(self) -> Terms:
        """On what terms the site's rule allows the work."""
        return self.folder.terms

    @property
    def names(self) -> list[str]:
        """The members' names."""
        members = self.task.spec.members
        return member_names([member.ref for member in members], [member.party for member in members])

    def tensors(self) -> list[TensorRange]:
        """Return all tensors that would leave."""
        return [
            TensorRange(file, name, values.shape, float(values.min()), float(values.max()))
            for file in (STITCHES, MOMENTS)
            if file in self.files
            for name, values in self._values(file)
        ]

    def spread(self, file: str) -> Histogram | None:
        """Return how the numbers of a file of tensors are spread; None where it has none."""
        values = [tensor for _, tensor in self._values(file) if tensor.size]
        return histogram(f"all numbers in {file}", values) if values else None

    def _values(self, file: str) -> Iterator[tuple[str, np.ndarray]]:
        with safe_open(self.files[file], framework="numpy") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)


def held_result(held: Held, manifest: Manifest, config: SiteConfig) -> HeldResult:
    """Return what is held for a task, by the limits that are in force now."""
    folder = TaskFolder(config.state / "tasks", manifest.task)
    files = {part.name or UNNAMED: held.part(manifest, number) for number, part in enumerate(manifest.parts)}
    documents = {name: json.loads(file.read_bytes()) for name, file in files.items() if name.endswith(".json")}
    documents[UNNAMED] = json.loads(files[UNNAMED].read_bytes())["document"]
    policy = config.policy
    return HeldResult(
        folder.assignment.task, folder, documents, files, policy.min_samples, policy.min_per_class, policy.decimals
    )


def fit(held: HeldResult) -> Iterator[Section]:
    """Yield what a fit would tell: its candidates, stitches and gates."""
    candidates = CandidateSet.model_validate(held.documents[CANDIDATES])
    words = in_words_of(candidates, [member.party for member in held.task.spec.members])
    rows = [
        (candidate.id, words[candidate.id].words, words[candidate.id].label, _r2(candidate))
        for candidate in candidates.candidates
    ]
    notes = [f"{contribution.party} {contributed(contribution)}" for contribution in candidates.contributions or ()]
    notes += [f"nothing was stitched: {UNSTITCHED[candidates.unstitched]}"] if candidates.unstitched else []
    yield Section(
        f"{CANDIDATES}: {len(rows)} ways to use the models, fitted to {_of(candidates.n, candidates.patients)}",
        ("id", "what it is", "in full", "r² of its stitches"),
        rows,
        prose=("what it is", "in full"),
        spare=("in full",),
        notes=notes,
    )
    ranges = {tensor.name: tensor for tensor in held.tensors()}
    size = sum(int(np.prod(tensor.shape)) for tensor in ranges.values())
    yield Section(
        f"{STITCHES}: {size:,} numbers, fitted to the same samples",
        ("tensors", "what they are", "size", "from", "to"),
        list(_maps(candidates, held.names, ranges)),
        prose=("what they are",),
        drawing=held.spread(STITCHES),
    )


def evaluation(held: HeldResult) -> Iterator[Section]:
    """Yield what an evaluation would tell: each candidate's numbers, by split and by label."""
    document = Evaluation.model_validate(held.documents[UNNAMED])
    candidates = read_document(CandidateSet, held.folder.candidates / CANDIDATES)
    words = in_words_of(candidates, [member.party for member in held.task.spec.members])
    scale = scale_of(document.metric)
    digits = scale.decimals_between(10.0**-held.decimals)
    for split, scores in document.splits.items():
        rows = [
            (id, words[id].words, scale.text(score.value, digits), *_compared(score, candidates, scale, digits))
            for id, score in scores.scores.items()
        ]
        yield Section(
            f"{split} split, {_of(scores.n, scores.patients)}: {scale.name}, with 95 % intervals",
            ("id", "what it is", scale.name, "interval", "minus own", "minus plain", "minus routed", "ECE", "Brier"),
            rows,
            prose=("what it is", "minus routed"),
            spare=("minus routed", "Brier", "ECE", "minus plain", "minus own"),
            drawing=strips({f"{id} {words[id].words}": score for id, score in scores.scores.items()}, scale, digits),
        )
        labels = list(_labels(scores, candidates, scale, digits))
        if labels:
            title = f"{split} split by label, for each of the {len(rows)} candidates"
            yield Section(title, ("label", "samples", "patients", "from", "to"), labels, prose=("label",))
        yield from _further(split, scores)
    if document.own is not None and document.training is not None:
        lines = [declared(document.training, held.task.spec.members[document.own].party)]
        if document.train is not None:
            value = f"{scale.text(document.train.value, digits)} ({_interval(document.train, scale, digits)})"
            lines.append(f"On {_of(document.train.n, document.train.patients)} of the train split it reaches {value}.")
        yield Section("the own model's training", notes=lines)


def _further(split: str, scores: SplitScores) -> Iterator[Section]:
    """Yield what is told beside the task's own metric, of the split and of its subgroups."""
    parts: list[tuple[str, SplitScores | Subgroup]] = [
        ("all", scores),
        *((f"{part.column}: {part.value}", part) for part in scores.subgroups),
    ]
    rows = [
        (name, _of(part.n, part.patients), CLINICAL_NAMES[metric], *_ends([value.value for value in values.values()]))
        for name, part in parts
        for metric, values in part.metrics.items()
    ]
    rows += [
        (name, _of(part.n, part.patients), "as above", *_ends([score.value for score in part.scores.values()]))
        for name, part in parts[1:]
    ]
    if rows:
        title = f"{split} split, further metrics and subgroups, for each of the {len(scores.scores)} candidates"
        yield Section(title, ("part", "samples", "metric", "from", "to"), rows, prose=("part", "metric"))
    if scores.curves:
        id, first = next(iter(scores.curves.items()))
        bins = [(f"{part.upto:g}", f"{part.n:,}", f"{part.predicted:.3f}", f"{part.events:,}") for part in first]
        title = f"{split} split, calibration curves of {len(scores.curves)} candidates; the first one's"
        columns = ("up to", "samples", "mean probability", "events")
        yield Section(title, columns, bins, drawing=curve(f"the curve of {id}", id, first))


def _ends(values: Sequence[float]) -> tuple[str, str]:
    return f"{min(values):.4g}", f"{max(values):.4g}"


def contribution(held: HeldResult) -> Iterator[Section]:
    """Yield what a contribution would tell: sums over patients, at each place where the models may be joined."""
    document, spec = ContributionDocument.model_validate(held.documents[UNNAMED]), held.task.spec
    splits = [f"{split} {_of(n, (document.patients or {}).get(split))}" for split, n in document.n.items()]
    rows = []
    for tensor in held.tensors():
        place, grid, split, kind = tensor.name.split(".")
        where = _place(spec.placements[int(place)], held.names)  # type: ignore[attr-defined]
        what = "means" if kind == "mean" else "second moments"
        rows.append((where, grid, split, what, f"{tensor.shape[0]:,}", f"{tensor.low:.4g}", f"{tensor.high:.4g}"))
    columns = ("features of", "grid", "split", "what", "numbers", "from", "to")
    title = f"{MOMENTS}: {'; '.join(splits)}"
    yield Section(title, columns, rows, prose=("features of",), spare=("grid",), drawing=held.spread(MOMENTS))


def match(held: HeldResult) -> Iterator[Section]:
    """Yield what a match would tell: where the models can be joined, and how large their features are there."""
    document = Matched.model_validate(held.documents[UNNAMED])
    places = zip(document.placements, document.norms, strict=True)
    rows = [(_place(place, held.names), f"{norm:g}") for place, norm in places]
    title = f"where the models can be joined, from {_of(document.n, document.patients)}"
    yield Section(title, ("features of", "their typical size"), rows, prose=("features of",))


def assumed(terms: Terms, action: str) -> str:
    """Say what the site's rule promises, or whom it trusts."""
    if terms.privacy is None:
        return trusts(terms.trusted or ())
    return f"{spent(terms.privacy)} and {'contribution' if action == 'contribute' else 'job'}"


def withheld(held: HeldResult) -> list[str]:
    """Say what would not leave, and why."""
    noise = held.terms.privacy is not None
    omissions = []
    if held.task.kind in ("fit", "evaluate"):
        omissions.append(f"of measured numbers all but {held.decimals} decimals and six digits")
    if held.task.kind == "match":
        omissions.append("of sizes all but three digits")
    if held.task.kind == "evaluate":
        measured = read_document(Evaluation, held.folder.results / DOCUMENT)
        remaining = Evaluation.model_validate(held.documents[UNNAMED])
        labels = read_document(CandidateSet, held.folder.candidates / CANDIDATES).labels or ()
        for split, scores in remaining.splits.items():
            hidden = measured.splits[split].classes.keys() - scores.classes.keys()
            if hidden:
                named = ", ".join(labels[int(index)] for index in sorted(hidden, key=int))
                omissions.append(
                    f"{split} split, labels {named}: fewer than {held.min_per_class} patients, or others that would "
                    "give these away by subtraction"
                )
            omissions += _omitted(split, measured.splits[split], scores, held.min_per_class)
        if measured.train is not None and remaining.train is None:
            omissions.append(f"the own model on training samples: fewer than {held.min_patients} patients")
        if noise:
            omissions.append(
                "numbers by label, calibration and the own model's training: they would need noise of their own"
            )
    elif held.task.kind in ("fit", "contribute") and not noise:
        omissions.append(f"features that fewer than {held.min_patients} patients carry: they took no part")
    return omissions


def _of(n: int, patients: int | None) -> str:
    return f"{n:,} samples" + ("" if patients is None else f" of {patients:,} patients")


def _r2(candidate: Candidate) -> str:
    values = [stitch.r2 for match in candidate.matches for stitch in match.stitches if stitch.r2 is not None]
    return "" if not values else f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else f"{values[0]:.4g}"


def _maps(
    candidates: CandidateSet, names: Sequence[str], ranges: Mapping[str, TensorRange]
) -> Iterator[tuple[object, ...]]:
    """Yield a row for each stitch and gate; several candidates may use the same."""
    seen: set[str] = set()
    for candidate in candidates.candidates:
        holders: list[tuple[Stitch | Gate, str]] = [
            (stitch, f"{names[stitch.source]} to {names[stitch.target]}, {match.points[str(stitch.source)]} to "
             f"{match.points[str(stitch.target)]}")
            for match in candidate.matches
            for stitch in match.stitches
        ]  # fmt: skip
        if candidate.gate is not None:
            holders.append((candidate.gate, f"gate of {_place(candidate.gate.points, names)}"))
        for holder, what in holders:
            if holder.weight in seen:
                continue
            seen.add(holder.weight)
            weight, bias = ranges[holder.weight], ranges[holder.bias]
            low, high = min(weight.low, bias.low), max(weight.high, bias.high)
            rows, columns = weight.shape
            size = f"{rows} x {columns} + {rows}"
            yield holder.weight.removesuffix(".weight"), what, size, f"{low:.4g}", f"{high:.4g}"


def _place(points: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{names[int(index)]} {points[index]}" for index in sorted(points, key=int))


def _interval(score: Interval, scale: Scale, digits: int) -> str:
    return f"{scale.number(score.low, digits)} to {scale.number(score.high, digits)}"


def _omitted(split: str, measured: SplitScores, remaining: SplitScores, minimum: int) -> Iterator[str]:
    """Say which further metrics and subgroups do not leave."""
    curve = {"calibration_curve"} if measured.curves and not remaining.curves else set()
    if metrics := (measured.metrics.keys() - remaining.metrics.keys()) | curve:
        yield f"{split} split, {', '.join(sorted(metrics))}: a label has fewer than {minimum} patients"
    kept = {(part.column, part.value) for part in remaining.subgroups}
    if hidden := [part for part in measured.subgroups if (part.column, part.value) not in kept]:
        named = ", ".join(f"{part.column} {part.value}" for part in hidden)
        yield f"{split} split, subgroups {named}: fewer than {minimum} patients, or others that would give these away"


def _difference(value: Interval | None, scale: Scale, digits: int) -> str:
    if value is None:
        return ""
    sign = "" if value.value < 0 else "+"
    return f"{sign}{scale.number(value.value, digits)} ({_interval(value, scale, digits)})"


def _compared(score: Score, candidates: CandidateSet, scale: Scale, digits: int) -> tuple[str, ...]:
    plain = next(candidate.id for candidate in candidates.candidates if candidate.kind == "ensemble")
    routed = [f"{id} {_difference(value, scale, digits)}" for id, value in score.against.items() if id != plain]
    calibration = score.calibration
    return (
        _interval(score, scale, digits),
        _difference(score.difference, scale, digits),
        _difference(score.against.get(plain), scale, digits),
        "; ".join(routed),
        "" if calibration is None else f"{calibration.ece:g}",
        "" if calibration is None else f"{calibration.brier:g}",
    )


def _labels(scores: SplitScores, candidates: CandidateSet, scale: Scale, digits: int) -> Iterator[tuple[object, ...]]:
    for index, class_scores in sorted(scores.classes.items(), key=lambda item: int(item[0])):
        values = class_scores.scores.values()
        least, most = scale.text(min(values), digits), scale.text(max(values), digits)
        patients = class_scores.n if class_scores.patients is None else class_scores.patients
        yield (candidates.labels or ())[int(index)], class_scores.n, patients, least, most
