"""The documents that travel between sites and hub: candidates, evaluations, the report.

Torch-free and closed (unknown fields are refused), so that hub and outbox can check every byte that leaves a site.
Numbers are finite; there is no free text beside names the hub already knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from suture_contract.measures import CalibrationBin as CalibrationBin
from suture_contract.measures import ClinicalMetric as ClinicalMetric
from suture_contract.measures import Count as Count
from suture_contract.measures import Finite, Fraction
from suture_contract.measures import Interval as Interval
from suture_contract.measures import MeasuredMetric as MeasuredMetric
from suture_contract.model.metadata import Label, MemberRef, Name, Task, Trusted
from suture_contract.privacy import Delta, Epsilon, Privacy
from suture_contract.unseen import legible

if TYPE_CHECKING:
    from pandas import DataFrame

Metric = Literal["accuracy", "balanced_accuracy", "auroc", "f1", "dice", "r2", "mae"]
SplitName = Literal["validation", "test"]
Verdict = Literal["adopt", "care", "reject"]
#: Losing less than this much of a metric that runs from 0 to 1 asks for care, losing more is a reason to reject.
CARE = 0.05
#: Of fewer patients no verdict says adopt: the interval reaches zero because they tell next to nothing.
FEW_PATIENTS = 8
CandidateKind = Literal["single", "ensemble", "corrected", "routed", "stitched"]
#: Kinds without a stitch that every candidate is measured against.
PLAIN: tuple[CandidateKind, ...] = ("ensemble", "corrected", "routed")
CandidateId = Annotated[str, StringConstraints(pattern=r"^c[0-9]{2,4}$")]
#: A member's index among the ensemble's, as a key of a JSON object.
MemberIndex = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}$")]
#: A label's index among the ensemble's, as a key of a JSON object.
LabelIndex = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,4})$")]
#: A node of a member's graph; `.0` is the first token (the class token) of the sequence there.
Point = Annotated[str, StringConstraints(pattern=r"^n[0-9]{1,7}(\.0)?$")]
#: A tensor in `stitches.safetensors`.
TensorName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[._][a-z0-9]+)*$", max_length=64)]
#: `chosen`, `own`, `peer:<party/name>`, `ensemble`, `corrected`, `routed` or `stitched`.
Row = Annotated[
    str,
    StringConstraints(
        pattern=r"^(chosen|own|ensemble|corrected|routed|stitched|peer:[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96})$"
    ),
]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Stitch(_Closed):
    """An affine map from the features of member `source` to those of member `target`, at one match.

    Its tensors are `<weight>` (out, in) and `<bias>` (out,) in the candidates' safetensors file.
    """

    source: Count
    target: Count
    weight: TensorName
    bias: TensorName
    r2: Finite | None = None


class Gate(_Closed):
    """How much a sample is trusted to be like the fit data, by the members' own features at `points`.

    The features are averaged over positions and stand side by side; `<weight>` (k, D) and `<bias>` (k,) whiten them
    in k directions.
    A sample whose squared distance is at most `near` counts fully, one at `far` or beyond not at all. Unfamiliar
    samples are left to the other members where one `withdraws`: its output counts only as far as a sample does.
    """

    points: dict[MemberIndex, Point]
    weight: TensorName
    bias: TensorName
    near: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    far: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    withdraws: Count | None = None

    @model_validator(mode="after")
    def _far_is_farther(self) -> Gate:
        if self.far <= self.near:
            raise ValueError("far: must be larger than near")
        return self


class FitDocument(_Closed):
    """What ends a fit, beside its files: the number of samples that it used."""

    n: Annotated[int, Field(ge=0)]


class Match(_Closed):
    """One place where members are joined: a stitch point per member (by member index), the mixing weight, the stitches.

    The mixed feature of a member is `(1 - w) * own + w * mean(translated from the others)`; `w` is `alpha`, times how
    familiar a sample is to the candidate's gate where there is one.
    """

    points: dict[MemberIndex, Point]
    alpha: Fraction
    stitches: tuple[Stitch, ...]


class Candidate(_Closed):
    """One way to use the members: one alone, their plain ensemble, that corrected for each site's shares of labels,
    routed by familiarity, or a stitched ensemble.

    A routed one leaves familiar samples to the member that its gate names, others to the other members.

    With a `site_prior` each member's `label_prior` is divided out of its probabilities before they are averaged, and
    the shares of labels where the model is used are put in: in an evaluation those of that site's training data, in
    the composed model `site_prior` itself, which are the requester's, in the order of the ensemble's labels.
    """

    id: CandidateId
    kind: CandidateKind
    members: tuple[Count, ...]
    matches: tuple[Match, ...] = ()
    gate: Gate | None = None
    refined: bool = False
    #: What other parties' moments counted for when its stitches were solved for.
    others: Fraction | None = None
    site_prior: tuple[Fraction, ...] | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Candidate:
        if self.kind == "corrected" and self.site_prior is None:
            raise ValueError("site_prior: a corrected candidate needs one")
        if self.kind == "routed" and (self.gate is None or self.gate.withdraws is None):
            raise ValueError("gate: a routed candidate needs one, with the member that withdraws")
        return self


#: Samples by split of a fit.
Samples = dict[Literal["train", "validation"], Annotated[int, Field(ge=1)]]


class Contributed(_Closed):
    """A party whose moments the fit had; `n` are its samples, `epsilon` and `delta` what its noise promises, if any."""

    party: Name
    n: Samples
    epsilon: Epsilon | None = None
    delta: Delta | None = None


class CandidateSet(_Closed):
    """What a `fit` task produced; the tensors of all stitches are in `stitches.safetensors` beside it.

    Candidates `c00` to `c<K-1>` are the members alone, in order; the next one is their plain ensemble.
    """

    schema_: Literal["suture.candidates/1"] = Field(default="suture.candidates/1", alias="schema")
    task: Task
    members: Annotated[tuple[MemberRef, ...], Field(min_length=2)]
    #: Labels of the ensemble's output: the members' labels, first seen first.
    labels: tuple[Label, ...] | None = None
    n: Count
    #: Patients whose `n` samples they are; None where nobody counted them.
    patients: Count | None = None
    seed: int
    #: Why there are no stitched candidates: a member without stitch points, or none that says what another's says.
    unstitched: Literal["no_points", "no_match"] | None = None
    #: Whose moments the candidates with `others` rest on.
    contributions: tuple[Contributed, ...] | None = None
    #: What noise promises for all that was computed on patients; None for an exact fit, which promises nothing.
    privacy: Privacy | None = None
    #: Of an exact fit: whose models it trusts.
    trusted: tuple[Trusted, ...] | None = None
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1, max_length=999)]

    @model_validator(mode="after")
    def _names_only_what_is_there(self) -> CandidateSet:
        everyone = tuple(range(len(self.members)))
        first = [(candidate.kind, candidate.members) for candidate in self.candidates[: len(everyone) + 1]]
        if first != [*(("single", (index,)) for index in everyone), ("ensemble", everyone)]:
            raise ValueError("candidates: the members alone come first, in order, then their plain ensemble")
        if [candidate.id for candidate in self.candidates] != [f"c{i:02}" for i in range(len(self.candidates))]:
            raise ValueError("candidates: ids count up from c00")
        for candidate in self.candidates:
            if candidate.site_prior is not None and len(candidate.site_prior) != len(self.labels or ()):
                raise ValueError(f"candidates.{candidate.id}: site_prior has a share for each label")
            named = {*candidate.members}
            if candidate.gate is not None:
                named |= {int(index) for index in candidate.gate.points}
                named |= set() if candidate.gate.withdraws is None else {candidate.gate.withdraws}
            for match in candidate.matches:
                named |= {int(index) for index in match.points}
                for stitch in match.stitches:
                    named |= {stitch.source, stitch.target}
                    if stitch.source == stitch.target:
                        raise ValueError(f"candidates.{candidate.id}: a stitch joins two different members")
            if not named <= set(everyone):
                raise ValueError(f"candidates.{candidate.id}: there are only {len(everyone)} members")
        return self


class Calibration(_Closed):
    """How far a classifier's probabilities can be believed; 0 is best.

    `ece` is the expected calibration error over 15 bins of the highest probability (Guo et al., "On calibration of
    modern neural networks", 2017), `brier` the squared error of all probabilities, summed over labels (Brier, 1950).
    """

    ece: Fraction
    brier: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


class Score(Interval):
    """One candidate's metric on one split.

    `difference` is the candidate minus the party's own model, and `against` the candidate minus the plain ensemble and
    minus the corrected and each routed one, by its id; all are paired: measured on the same samples.
    """

    difference: Interval | None = None
    against: dict[CandidateId, Interval] = Field(default_factory=dict)
    calibration: Calibration | None = None


class ClassScores(_Closed):
    """Samples that have one label: how many there are, of how many patients, and how well each candidate does there.

    Classification: the share that is classified correctly. Several labels at once: the share where the label is found.
    Segmentation: the mean Dice of the label.
    """

    n: Annotated[int, Field(ge=1)]
    #: Patients with such samples; None where nobody counted them.
    patients: Annotated[int, Field(ge=1)] | None = None
    scores: dict[CandidateId, Fraction]


class TrainScore(Interval):
    """The party's own model on `n` samples, of so many patients, of the split it may have learnt from."""

    n: Count
    patients: Count | None = None


#: What the owner declares of the training of its model, as the site found it: on its train split, whose digest is the
#: site's own, another one's, or not given; on all data; or nothing.
Training = Literal["matches", "differs", "no_digest", "all", "undeclared"]


class Subgroup(_Closed):
    """The samples of a split that have a `value` in a `column`, both as the site names them."""

    column: Label
    value: Label
    n: Count
    patients: Count | None = None
    scores: dict[CandidateId, Interval]
    metrics: dict[MeasuredMetric, dict[CandidateId, Interval]] = {}


class SplitScores(_Closed):
    """All candidates on one split of one party's dataset.

    `classes` has the labels that may be told of; it is empty where none may, and for tasks without labels. `metrics`
    are those that the job asked for beside the task's own, of the test split; `curves` are the calibration curves, and
    `subgroups` those that the site names.
    """

    n: Count
    #: Patients whose samples they are; None where nobody counted them.
    patients: Count | None = None
    scores: dict[CandidateId, Score]
    classes: dict[LabelIndex, ClassScores] = {}
    metrics: dict[MeasuredMetric, dict[CandidateId, Interval]] = {}
    curves: dict[CandidateId, tuple[CalibrationBin, ...]] = {}
    subgroups: tuple[Subgroup, ...] = ()

    @model_validator(mode="after")
    def _classes_are_parts(self) -> SplitScores:
        parts: list[ClassScores | Subgroup] = [*self.classes.values(), *self.subgroups]
        if any(part.n > self.n for part in parts):
            raise ValueError("classes: one has more samples than the split")
        counted = [(self.patients, self.n), *((part.patients, part.n) for part in parts)]
        if any((patients or 0) > n for patients, n in counted):
            raise ValueError("patients: there are more of them than samples")
        if any(part.scores.keys() != self.scores.keys() for part in parts):
            raise ValueError("classes: each is measured with every candidate")
        every = [self.metrics, *(subgroup.metrics for subgroup in self.subgroups)]
        further = {*self.curves, *(id for metrics in every for values in metrics.values() for id in values)}
        if not further <= self.scores.keys():
            raise ValueError("metrics: they are of the candidates alone")
        return self


class Evaluation(_Closed):
    """What an `evaluate` task may let out: numbers only."""

    schema_: Literal["suture.evaluation/1"] = Field(default="suture.evaluation/1", alias="schema")
    metric: Metric
    higher_is_better: bool = True
    #: Index of the party's own member, if it has one: what `difference` is measured against.
    own: Count | None = None
    splits: dict[SplitName, SplitScores]
    #: Of the party's own member: what is declared of its training, and how well it does on the train split.
    training: Training | None = None
    train: TrainScore | None = None
    #: What noise on the metrics promises; None where there is none.
    privacy: Privacy | None = None
    #: Of exact metrics: whose models the site trusts.
    trusted: tuple[Trusted, ...] | None = None
    #: The metrics beside the task's own that the job asked for: those not told are withheld, or not defined here.
    asked: tuple[ClinicalMetric, ...] = ()


class ClassReport(_Closed):
    """The samples with one label among a party's test data, and how well each row's model does there."""

    label: Label
    n: Count
    patients: Count | None = None
    rows: dict[Row, Fraction]


class SubgroupReport(_Closed):
    """A subgroup of a party's test data: how well each row's model does there."""

    column: Label
    value: Label
    n: Count
    patients: Count | None = None
    rows: dict[Row, Interval]
    metrics: dict[MeasuredMetric, dict[Row, Interval]] = {}


class PartyReport(_Closed):
    """One party's rows, measured on its test data: `chosen`, `own`, `peer:<repo>`, `ensemble`, `routed`, `stitched`.

    `chosen` is the model that the verdict is about, and the one that is published. `corrected`, `routed` and `stitched`
    are the chosen candidate where it is of that kind, else the best of the kind over all parties' validation data. A
    row is left out where there is nothing to show: `own` for a party that has no model among the members. Files of
    older versions have no row `chosen`; it is filled in when they are read.
    """

    metric: Metric
    n: Count
    #: Patients whose samples they are; None where nobody counted them.
    patients: Count | None = None
    rows: dict[Row, Interval]
    verdict: Verdict
    #: By row, the row's model minus the party's own, measured on the same samples (paired).
    differences: dict[Row, Interval] = {}
    #: By row, the chosen model minus the row's, paired, as far as that was measured.
    gains: dict[Row, Interval] = {}
    calibration: dict[Row, Calibration] = {}
    #: What is declared of the training of the party's own model, and how well that does on the train split.
    training: Training | None = None
    train: TrainScore | None = None
    #: Labels with enough samples there, as that party's policy has it.
    classes: tuple[ClassReport, ...] = ()
    #: Metrics beside the task's own that the job asked for, and the calibration curves, by row.
    metrics: dict[MeasuredMetric, dict[Row, Interval]] = {}
    curves: dict[Row, tuple[CalibrationBin, ...]] = {}
    #: Parts of the test data that the party names, with enough patients.
    subgroups: tuple[SubgroupReport, ...] = ()
    #: Metrics that the job asked for and that are not told: of too few patients, hidden by noise, or not defined.
    withheld: tuple[ClinicalMetric, ...] = ()
    #: What noise on the party's numbers promises for one patient; without noise, whose models its site trusts.
    privacy: Privacy | None = None
    trusted: tuple[Trusted, ...] | None = None


class CandidateReport(_Closed):
    """One candidate as the report shows it: `metrics[party]` on the test split, and whether it is on the front.

    `label` tells it apart from every other candidate; `words` say what it is to people who know no networks.
    """

    id: CandidateId
    kind: CandidateKind
    label: Annotated[str, StringConstraints(max_length=200), AfterValidator(legible)]
    metrics: dict[Name, Finite]
    front: bool
    words: Annotated[str, StringConstraints(max_length=600), AfterValidator(legible)] | None = None


class ReportLineage(_Closed):
    """What the chosen model was made of."""

    job: Annotated[str, StringConstraints(max_length=64), AfterValidator(legible)]
    members: tuple[MemberRef, ...]


class Missing(_Closed):
    """A party that was asked and has no column, and how it is told to others."""

    party: Name
    reason: Literal["declined", "no_answer", "too_few_samples", "failed"]


class Revised(_Closed):
    """How a report differs from the one before: `added` answered since; `before` is the candidate chosen then."""

    before: CandidateId
    added: tuple[Name, ...]


class Report(_Closed):
    """The party report, `report.json`. A contract: fields are only ever added."""

    schema_: Literal["suture.report/1"] = Field(default="suture.report/1", alias="schema")
    requester: Name
    parties: dict[Name, PartyReport]
    chosen: CandidateId
    candidates: tuple[CandidateReport, ...]
    lineage: ReportLineage
    missing: tuple[Missing, ...] = ()
    #: Whose moments the fit had; which candidates rest on them, their labels say.
    contributions: tuple[Contributed, ...] | None = None
    #: Counts up when parties answer later, each time with a new revision of the model.
    version: Annotated[int, Field(ge=1)] = 1
    revised: Revised | None = None
    #: What noise in the fit promises for one patient of the requester; without noise, whose models its site trusts.
    privacy: Privacy | None = None
    trusted: tuple[Trusted, ...] | None = None
    #: Hypervolume of the front over the parties' metrics, reference point 0.
    hypervolume: Finite | None = None

    def to_dataframe(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a line for each party and model; needs pandas (the extra `tables`)."""
        from suture_contract.report.notebook import frame

        return frame(self)

    def _repr_html_(self) -> str:
        from suture_contract.report.notebook import framed

        return framed(self)

    @model_validator(mode="after")
    def _chosen_is_a_candidate(self) -> Report:
        chosen = next((candidate for candidate in self.candidates if candidate.id == self.chosen), None)
        if chosen is None:
            raise ValueError("chosen: not one of the candidates")
        if chosen.kind == "single" and int(chosen.id[1:]) >= len(self.lineage.members):
            raise ValueError("chosen: not one of the members")
        return self
