"""What a finished task may let out: known documents, known fields, numbers of bounded precision, enough samples.

What a child wrote is checked as strictly as what comes from outside: a document must have exactly its schema's fields
and name only what the hub itself named in the task. What leaves is written anew from what was understood, never copied,
but for tensors, which there is only one way to write.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from suture_contract.card import write_card
from suture_contract.compatibility import describe_ensemble, site_prior
from suture_contract.contributions import (
    SPLITS,
    ClippedPrivacy,
    ContributionDocument,
    Described,
    Matched,
)
from suture_contract.documents import PLAIN, CandidateId, CandidateSet, Evaluation, FitDocument, Interval, Report
from suture_contract.errors import SutureError
from suture_contract.files import sha256_of
from suture_contract.kinds import CANDIDATES, CARD, FILES, METADATA, MODEL, MOMENTS, REPORT, STITCHES
from suture_contract.report.build import build
from suture_stitching.evaluation.select import choose
from suture_worker.egress.further import check_further, expect
from suture_worker.egress.moments import check_moments
from suture_worker.egress.suppression import people, suppressed
from suture_worker.egress.tensors import check_stitches
from suture_worker.folder import DOCUMENT, TaskFolder
from suture_worker.leased_task import (
    ComposeSpec,
    ContributeSpec,
    EvaluateSpec,
    FitSpec,
    LeasedTask,
    MatchSpec,
)
from suture_worker.rules.policy import METRICS, TOO_FEW

MAX_DOCUMENT = 16 * 2**20
#: Numbers of a candidate that are part of the model, not measured.
_EXACT = frozenset({"alpha", "near", "far", "epsilon", "delta", "site_prior"})
#: Of those, measured by patients' distances, and rounded where they are made: the model must be what was measured.
_DISTANCES = frozenset({"near", "far"})
#: Of the sizes of features that contributors measure their noise by.
_NORM_DIGITS = 3
_SIGNIFICANT_DIGITS = 6
_LARGEST = 10**12
#: Metrics that are a share: their values lie in [0, 1], their differences in [-1, 1].
_SHARES = frozenset({"accuracy", "balanced_accuracy", "auroc", "f1", "dice"})


@dataclass(frozen=True)
class Draft:
    """A part of a result that is in order: the document (no name), or a file; `content` is exactly what may leave."""

    kind: Literal["file", "result"]
    name: str | None
    content: bytes | Path
    sha256: str
    size: int

    @classmethod
    def of(cls, kind: Literal["file", "result"], name: str | None, content: bytes | Path) -> Draft:
        """Return the draft of these bytes, or of the file at this path."""
        if isinstance(content, bytes):
            return cls(kind, name, content, hashlib.sha256(content).hexdigest(), len(content))
        return cls(kind, name, content, sha256_of(content), content.stat().st_size)


#: The files that may leave, by name, and the document.
Released: TypeAlias = "tuple[dict[str, bytes | Path], Any]"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ComposeDocument(_Closed):
    chosen: CandidateId


_Document = TypeVar("_Document", bound=BaseModel)


class ReleaseCheck:
    """The site's limits: patients of a split and of a part of one (a class, say), decimals of measured numbers.

    `subgroups` are what the site names of each dataset: columns, and what the subgroups of each are called.
    """

    def __init__(
        self,
        *,
        min_samples: int,
        min_per_class: int,
        decimals: int,
        subgroups: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({}),
    ) -> None:
        self._min_samples, self._subgroups = min_samples, subgroups
        self._min_per_class = min_per_class
        self._decimals = decimals

    def check(self, task: LeasedTask, folder: TaskFolder) -> list[Draft]:
        """Return all that a finished task sends, files first and its document last.

        Raises `SutureError` `outbox.refused` for anything that is not in order, and `policy.too_few_samples`.
        """
        named, document = task.side.released(self, task, task.spec, folder)
        expect(named.keys() == set(FILES[task.kind]), "results", "are not the files of such a task")
        self._enough(document)
        drafts = [Draft.of("file", name, content) for name, content in named.items()]
        return [*drafts, Draft.of("result", None, to_json({"fence": task.fence, "document": document}))]

    def match(self, spec: MatchSpec, folder: TaskFolder) -> Released:
        """Return where members can be joined."""
        matched = read_document(Matched, folder.results / DOCUMENT)
        self._enough({"n": matched.n, "patients": matched.patients})
        expect(len(matched.norms) == len(matched.placements), "norms", "are not one for each placement")
        for place in matched.placements:
            expect(all(int(index) < len(spec.members) for index in place), "placements", "name no such member")
        norms = [float(f"{norm:.{_NORM_DIGITS}g}") for norm in matched.norms]
        return {}, {**matched.model_dump(mode="json"), "norms": norms}

    def contribution(self, spec: ContributeSpec, folder: TaskFolder) -> Released:
        """Return moments, and what they were made of."""
        document, terms = read_document(ContributionDocument, folder.results / DOCUMENT), folder.terms
        expect(document.n.keys() == set(SPLITS), "n", "does not name both splits")
        expect(document.patients is None or document.patients.keys() == set(SPLITS), "patients", "are not those of n")
        if min((document.patients or document.n).values()) < max(terms.min_samples, self._min_samples):
            raise SutureError(TOO_FEW, "the moments come from too few samples to leave this site", where="outbox")
        noise = (document.epsilon, document.delta)
        expect(noise == (terms.epsilon, terms.delta), "epsilon", "is not what the site's rule asks for")
        privacy = None
        if terms.epsilon is not None and terms.delta is not None:
            privacy = ClippedPrivacy(epsilon=terms.epsilon, delta=terms.delta, clips=spec.norms)
        described = Described(
            members=tuple(member.sha256 for member in spec.members),
            placements=spec.placements,
            n={split: document.n[split] for split in SPLITS},
            privacy=privacy,
        )
        path = _regular(folder.results / MOMENTS)
        check_moments(path, described)
        return {MOMENTS: path}, _dump(document)

    def fit(self, task: LeasedTask, spec: FitSpec, folder: TaskFolder) -> Released:
        """Return candidates and stitches."""
        document = read_document(FitDocument, folder.results / DOCUMENT)
        candidates = read_document(CandidateSet, folder.results / CANDIDATES)
        expect(document.n == candidates.n, "candidates.n", "is not the number of samples in the document")
        self._enough({"n": candidates.n, "patients": candidates.patients})
        _members_match(task, candidates)
        terms = folder.terms
        expect(candidates.privacy == terms.privacy, "candidates.privacy", "is not what the site's rule asks for")
        expect(candidates.trusted is None, "candidates.trusted", "is for the site itself to say")
        expect(terms.privacy is None or not candidates.contributions, "candidates.contributions", "have no noise")
        candidates = candidates.model_copy(update={"trusted": terms.trusted})
        expect(candidates.labels in (_labels(task), None), "candidates.labels", "are not those of the members")
        expect(candidates.seed == spec.options.get("seed", 0), "candidates.seed", "is not the seed of the job")
        own = next((index for index, member in enumerate(spec.members) if member.party == task.job.requester), None)
        declared = site_prior([member.metadata for member in spec.members], own)
        agree = all(candidate.site_prior in (None, declared) for candidate in candidates.candidates)
        expect(agree, "candidates.site_prior", "is not what the requester's model declares")
        parties = [contribution.party for contribution in candidates.contributions or ()]
        expect(len(set(parties)) == len(parties), "candidates.contributions", "names a party twice")
        for contribution in candidates.contributions or ():
            announced = spec.contributions.get(contribution.party)
            numbers = (contribution.n, contribution.epsilon, contribution.delta)
            agrees = announced is not None and numbers == (announced.n, announced.epsilon, announced.delta)
            expect(agrees, "candidates.contributions", "are not those of the task")
        check_stitches(_regular(folder.results / STITCHES), candidates)
        fitted: dict[str, bytes | Path] = {
            CANDIDATES: to_json(self._rounded(_dump(candidates))),
            STITCHES: folder.results / STITCHES,
        }
        return fitted, document.model_dump()

    def evaluation(self, spec: EvaluateSpec, folder: TaskFolder) -> Released:
        """Return what was measured."""
        evaluation = read_document(Evaluation, folder.results / DOCUMENT)
        expect(bool(evaluation.splits), "evaluation.splits", "is empty")
        terms = folder.terms
        expect(evaluation.privacy == terms.privacy, "evaluation.privacy", "is not what the site's rule asks for")
        expect(evaluation.trusted is None, "evaluation.trusted", "is for the site itself to say")
        expect(terms.privacy is None or not _exact(evaluation), "evaluation", "holds what has no noise")
        expect(evaluation.asked in ((), spec.metrics), "evaluation.asked", "is not what the job asked for")
        expect(evaluation.own == spec.own, "evaluation.own", "is not the member the task named")
        known = read_document(CandidateSet, folder.candidates / CANDIDATES)
        expect(evaluation.metric == METRICS[known.task], "evaluation.metric", "is not that of the task")
        expect(evaluation.higher_is_better == (evaluation.metric != "mae"), "evaluation", "turns its metric around")
        ids = {candidate.id for candidate in known.candidates}
        plain = {candidate.id for candidate in known.candidates if candidate.kind in PLAIN}
        for split, scores in evaluation.splits.items():
            where = f"evaluation.splits.{split}"
            expect(scores.scores.keys() == ids, where, "does not measure every candidate")
            named = self._subgroups.get(folder.assignment.dataset or "", {})
            check_further(scores, spec.metrics if split == "test" else (), named if split == "test" else {}, where)
            expect(
                not scores.classes or (known.task != "regression" and _are_labels(scores.classes, known.labels)),
                f"{where}.classes",
                "are not labels of the job",
            )
            low = 0 if evaluation.metric in _SHARES | {"mae"} else -math.inf
            high = 1 if evaluation.metric in _SHARES else math.inf
            for id, score in scores.scores.items():
                expect(score.against.keys() <= plain - {id}, where, "compares with others than the plain candidates")
                expect(score.calibration is None or known.task == "classification", where, "has calibration")
            intervals: list[Interval] = [*scores.scores.values()]
            intervals += [interval for subgroup in scores.subgroups for interval in subgroup.scores.values()]
            for measured in intervals:
                values = (measured.value, measured.low, measured.high)
                expect(all(low <= value <= high for value in values), where, "has a value that no metric has")
        shown = {
            split: suppressed(scores, self._min_per_class, known.task) for split, scores in evaluation.splits.items()
        }
        of_own = evaluation.own is not None
        expect(of_own or (evaluation.training is None and evaluation.train is None), "evaluation", "has no own member")
        enough = evaluation.train is not None and people(evaluation.train) >= self._min_samples
        train = evaluation.train if enough else None
        content = _dump(evaluation.model_copy(update={"splits": shown, "train": train, "trusted": terms.trusted}))
        self._enough(content)
        return {}, self._rounded(content)

    def composition(self, task: LeasedTask, spec: ComposeSpec, folder: TaskFolder) -> Released:
        """Return the model, and all that says what it is."""
        # All but the model follows from what the hub sent; made here, it can hold nothing from a child.
        document = read_document(_ComposeDocument, folder.results / DOCUMENT)
        candidates = read_document(CandidateSet, folder.candidates / CANDIDATES)
        _members_match(task, candidates)
        choice = choose(candidates, spec.evaluations, requester=task.job.requester)
        expect(document.chosen == choice.chosen, "document.chosen", "is not the candidate to choose")
        made = build(
            candidates,
            spec.evaluations,
            choice,
            requester=task.job.requester,
            parties_of_members=[member.party for member in spec.members],
            job=task.job.id,
            missing=spec.missing,
            version=spec.version,
            revised=spec.revised,
        )
        report = Report.model_validate(self._rounded(_dump(made)))
        metadata = describe_ensemble([member.metadata for member in spec.members], candidates, report)
        model = _regular(folder.results / MODEL)
        named: dict[str, bytes | Path] = {
            MODEL: model,
            METADATA: metadata.to_json().encode(),
            REPORT: to_json(_dump(report)),
            CARD: write_card(spec.publish_as, metadata, report).encode(),
        }
        return named, document.model_dump()

    def document(self, schema: type[BaseModel], folder: TaskFolder) -> Released:
        """Return a document that is all a task sends: it has exactly the fields of `schema`, and is rounded.

        It has no noise, and does not leave where the rule asks for some.
        """
        expect(folder.terms.privacy is None, DOCUMENT, "holds what has no noise")
        return {}, self._rounded(_dump(read_document(schema, folder.results / DOCUMENT)))

    def _enough(self, content: Any) -> None:
        """Refuse a document in which a split, or a part of one, has too few patients."""
        for n, depth in _counts(content):
            # The count itself for a fit, `splits.<split>` for an evaluation; anything deeper is a part of a split.
            if n < (self._min_samples if depth <= 2 else self._min_per_class):
                raise SutureError(TOO_FEW, "the result comes from too few samples to leave this site", where="outbox")

    def _rounded(self, content: Any, *, key: str = "") -> Any:
        """Round every measured number: the last digits of a metric tell single samples apart."""
        if isinstance(content, float):
            short = key not in _DISTANCES or content == float(f"{content:.{_SIGNIFICANT_DIGITS}g}")
            expect(short, key, f"has more than {_SIGNIFICANT_DIGITS} digits")
            return content if key in _EXACT else bounded(content, self._decimals)
        if isinstance(content, int) and not isinstance(content, bool):
            expect(abs(content) <= _LARGEST, key or "document", "is larger than any count")
        if isinstance(content, dict):
            return {name: self._rounded(value, key=name) for name, value in content.items()}
        if isinstance(content, list):
            return [self._rounded(value, key=key) for value in content]
        return content


def bounded(number: float, decimals: int) -> float:
    """Return `number` with at most so many decimals, and with six significant digits if it is large."""
    expect(abs(number) <= _LARGEST, "document", "holds a number that is larger than any metric")
    digits = decimals if number == 0 else min(decimals, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(number))))
    # Adding zero: no sign is left on a zero.
    return round(number, digits) + 0.0


def to_json(content: Any) -> bytes:
    """Return the one text of a document that leaves."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()


def checked(schema: type[_Document], content: dict[str, Any]) -> _Document:
    """Return a small message that has exactly the fields of `schema`; raises `outbox.refused`."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _refused(schema.__name__, error) from None


def _counts(content: Any, depth: int = 0) -> Iterator[tuple[int, int]]:
    """Yield every count of patients in a document, with how deep it lies; of samples where nobody counted patients."""
    if isinstance(content, dict):
        counts = [count for count in (content.get("patients"), content.get("n")) if isinstance(count, int)]
        if counts:
            yield counts[0], depth
        for value in content.values():
            yield from _counts(value, depth + 1)
    elif isinstance(content, list):
        for value in content:
            yield from _counts(value, depth + 1)


def _labels(task: LeasedTask) -> tuple[str, ...]:
    """Return the labels of the ensemble: the members' labels, first seen first."""
    return tuple(dict.fromkeys(label for member in task.spec.members for label in member.metadata.labels or ()))


def _exact(evaluation: Evaluation) -> bool:
    """Whether it holds anything that is never measured with noise."""
    exact: list[object] = [evaluation.training, evaluation.train]
    for scores in evaluation.splits.values():
        exact += [scores.classes, *(score.calibration for score in scores.scores.values())]
        exact += [scores.metrics, scores.curves, scores.subgroups]
    return any(exact)


def _are_labels(indices: Iterable[str], labels: Sequence[str] | None) -> bool:
    return all(int(index) < len(labels or ()) for index in indices)


def _members_match(task: LeasedTask, candidates: CandidateSet) -> None:
    refs = tuple(member.ref for member in task.spec.members)
    expect(candidates.members == refs, "candidates.members", "are not the members of the task")
    expect(candidates.task == task.spec.members[0].metadata.task, "candidates.task", "is not that of the members")


def read_document(schema: type[_Document], path: Path) -> _Document:
    """Return the document in a file that may be anybody's; raises `outbox.refused` if it is not in order."""
    try:
        return schema.model_validate_json(_content(path))
    except ValidationError as error:
        raise _refused(path.name, error) from None


def _refused(where: str, error: ValidationError) -> SutureError:
    fields = ", ".join(".".join(str(part) for part in detail["loc"]) for detail in error.errors()[:5])
    return SutureError("outbox.refused", f"not in order: {fields}", where=where)


def _regular(path: Path) -> Path:
    """Return `path` if a child left a plain file there, not a link to something else."""
    try:
        plain = stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        plain = False
    expect(plain, path.name, "is missing")
    return path


def _content(path: Path) -> bytes:
    with os.fdopen(os.open(_regular(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        content = file.read(MAX_DOCUMENT + 1)
    expect(len(content) <= MAX_DOCUMENT, path.name, "is too large")
    return content


def _dump(document: BaseModel) -> Any:
    return document.model_dump(mode="json", by_alias=True, exclude_none=True)
