"""The party report as one self-contained HTML page: no script, nothing loaded from elsewhere, every name escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from suture_contract.documents import CARE, CandidateReport, Interval, PartyReport, Report
from suture_contract.report import curves, plot
from suture_contract.report.assumed import assumed
from suture_contract.report.clinical import PartTable, clinical_tables
from suture_contract.report.gains import advice, decision, headline, remarks, sentence, took_no_part
from suture_contract.report.rows import chosen_of, complete, name_of, rows_of
from suture_contract.report.trust import training_words, warnings
from suture_contract.report.words import (
    METRIC_MEANINGS,
    OF_LABELS,
    REASONS,
    SHORT_REASONS,
    SIGNS,
    VERDICTS,
    Scale,
    contributed,
    samples,
    scale_of,
)
from suture_contract.rounding import fixed


@dataclass(frozen=True)
class Row:
    """One line of a party's table; `low`, `at`, `high` are positions in per cent of the drawn axis."""

    name: str
    value: str
    interval: str
    change: str
    low: float
    at: float
    high: float
    strong: bool
    calibration: str


@dataclass(frozen=True)
class ClassTable:
    """The labels of one party's test data: a heading per row of the party's table, and per label n and the numbers."""

    meaning: str
    models: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class PartySection:
    """What the page says about one party."""

    name: str
    asked: bool
    verdict: str
    badge: str
    sign: str
    sentence: str
    remarks: tuple[str, ...]
    #: What is declared of the training of the own model, and what looks odd.
    training: str
    warnings: tuple[str, ...]
    #: What to do instead, and the command.
    advice: tuple[str, str] | None
    metric: str
    axis_title: str
    meaning: str
    n: str
    rows: tuple[Row, ...]
    axis: tuple[plot.Tick, ...]
    calibrated: bool
    classes: ClassTable | None
    #: Metrics for clinicians, the calibration curve, subgroups.
    tables: tuple[PartTable, ...]


@dataclass(frozen=True)
class MatrixCell:
    """A model on a party's data; `strong` for the chosen one, `own` for the party's own model."""

    text: str
    strong: bool = False
    own: bool = False


@dataclass(frozen=True)
class MatrixRow:
    """One party's line of the matrix; with no cells, `note` says why."""

    party: str
    note: str
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True)
class Figure:
    """One plot from further away and closer, each for a wide and for a narrow page."""

    whole: tuple[plot.Plot, ...]
    near: tuple[plot.Plot | None, ...]


@dataclass(frozen=True)
class CandidateRow:
    """One line of the table of all candidates."""

    label: str
    values: tuple[str, ...]
    note: str


#: What the body looks like; its rules hold for the whole page.
STYLE = (files(__package__) / "report.css").read_text(encoding="utf-8")


def to_html(report: Report, made: datetime | None = None, of: str = "") -> str:
    """Return the page as text in UTF-8; a function of the report, of when it was made and of what it is the report."""
    page = _environment().get_template("report.html.jinja")
    return page.render(
        headline=headline(complete(report)),
        style=Markup(STYLE),  # noqa: S704
        body=to_body(report),
        made=made.astimezone(UTC) if made is not None else None,
        of=of,
        version=report.version,
    )


def to_body(report: Report) -> Markup:
    """Return what the page says, to stand in another one that has `STYLE`."""
    report = complete(report)
    parties = sorted(report.parties, key=lambda party: (party != report.requester, party))
    chosen = chosen_of(report)
    template = _environment().get_template("body.html.jinja")
    text = template.render(
        report=report,
        chosen=chosen,
        headline=headline(report),
        sections=[_section(report, party) for party in parties],
        figures=_figures(report),
        curve_frame=curves,
        missing=[(missing.party, REASONS[missing.reason]) for missing in report.missing],
        assumed=assumed(report),
        contributors=[(contribution.party, contributed(contribution)) for contribution in report.contributions or ()],
        columns=["chosen", *(candidate.label for candidate in _columns(report, chosen)[1:])],
        matrix=_matrix(report, parties, chosen),
        absent=[(missing.party, SHORT_REASONS[missing.reason]) for missing in report.missing],
        candidates=_candidate_rows(report, parties),
        parties=parties,
        front=sum(candidate.front for candidate in report.candidates),
        lead=_lead(report, chosen),
        revised=_revised(report, chosen),
        names=VERDICTS,
        verdicts=_verdicts(),
    )
    # A number and its per cent stay on one line.
    return Markup(text.replace(" %", "\N{NO-BREAK SPACE}%"))  # noqa: S704  # every name in it is escaped


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _verdicts() -> list[tuple[str, str]]:
    """Say what each verdict means, as `select` gives them."""
    care = f"{100 * CARE:g} points (of a metric without per cent: {CARE:g})"
    return [
        ("adopt", "on the party's test data not worse than its own model, as far as the 95 % interval can tell"),
        ("care", f"worse than its own model there, by less than {care}; or its patients are too few to tell"),
        ("reject", "worse than that, or no candidate kept up with the requester's own model"),
    ]


def _lead(report: Report, chosen: CandidateReport) -> str:
    others = len(report.parties) - (report.requester in report.parties)
    measured = {
        0: f"{report.requester} alone measured them",
        1: f"{report.requester} and one other party measured them, each on its own data",
    }.get(others, f"{report.requester} and {others} other parties measured them, each on its own data")
    made = f"{len(report.candidates)} ways to use {len(report.lineage.members)} models were tried, and {measured}."
    if chosen.kind == "stitched":
        return f"{made} The one chosen for {report.requester} is a stitched ensemble."
    if chosen.kind == "routed":
        return f"{made} The one chosen for {report.requester} sends each sample to the models it is familiar to."
    if chosen.kind == "corrected":
        return (
            f"{made} The one chosen for {report.requester} is the ensemble with each site's own shares of labels: no "
            "stitch did better."
        )
    if chosen.kind == "ensemble":
        return (
            f"{made} No stitched ensemble did better for {report.requester} than the plain ensemble, which was chosen."
        )
    return (
        f"{made} Nothing did well enough for {report.requester} to replace a single model: {chosen.label} was chosen."
    )


def _revised(report: Report, chosen: CandidateReport) -> str:
    """Say what changed since the version before; nothing in the first one."""
    if report.revised is None:
        return ""
    before = next((candidate for candidate in report.candidates if candidate.id == report.revised.before), None)
    choice = "The choice stays the same."
    if before is not None and before.id != chosen.id:
        choice = f"The choice changed from {before.id} ({before.label}) to {chosen.id} ({chosen.label})."
    answered = ", ".join(report.revised.added) or "nobody"
    return f"Since version {report.version - 1}, {answered} has been added. {choice}"


def _figures(report: Report) -> list[Figure]:
    frames = (plot.WIDE, plot.NARROW)
    whole, near = (zip(*(draw(report, frame) for frame in frames), strict=True) for draw in (plot.plots, plot.closer))
    return [Figure(*both) for both in zip(whole, near, strict=True)]


def _section(report: Report, party: str) -> PartySection:
    party_report = report.parties[party]
    scale = scale_of(party_report.metric)
    at, axis = axis_of(list(party_report.rows.values()), scale)
    names = {row: name_of(row, report) for row in rows_of(report, [party])}
    rows = []
    for row in names:
        interval = party_report.rows[row]
        difference, calibration = party_report.differences.get(row), party_report.calibration.get(row)
        rows.append(
            Row(
                name=names[row],
                value=scale.text(interval.value),
                interval=f"{scale.number(interval.low)} to {scale.number(interval.high)}",
                change=scale.change(difference.value) if difference else "",
                low=at(interval.low),
                at=at(interval.value),
                high=at(interval.high),
                strong=row == "chosen",
                calibration=f"{fixed(calibration.ece, 3)} / {fixed(calibration.brier, 3)}" if calibration else "",
            )
        )
    return PartySection(
        name=party,
        asked=party == report.requester,
        verdict=party_report.verdict,
        badge=decision(report, party),
        sign=SIGNS[party_report.verdict],
        sentence=sentence(report, party),
        remarks=tuple(remarks(report, party)),
        training=training_words(party_report, party),
        warnings=tuple(warnings(party_report, party)),
        advice=advice(report, party),
        metric=scale.name,
        axis_title=f"{scale.name}, {scale.unit}" if scale.unit else scale.name,
        meaning=METRIC_MEANINGS[party_report.metric],
        n=samples(party_report, " test samples"),
        rows=tuple(rows),
        axis=axis,
        calibrated=bool(party_report.calibration),
        classes=_class_table(party_report, names, scale),
        tables=clinical_tables(party_report, names, scale),
    )


def _class_table(party_report: PartyReport, names: Mapping[str, str], scale: Scale) -> ClassTable | None:
    meaning = OF_LABELS.get(party_report.metric)
    if meaning is None or not party_report.classes:
        return None
    return ClassTable(
        meaning=meaning,
        models=tuple(names.values()),
        rows=tuple(
            (
                class_report.label,
                f"{class_report.n:,}",
                tuple(scale.text(class_report.rows[row]) if row in class_report.rows else "" for row in names),
            )
            for class_report in party_report.classes
        ),
    )


def _columns(report: Report, chosen: CandidateReport) -> list[CandidateReport]:
    """Return the matrix's candidates: the chosen one, the members alone and their plain ensemble.

    A member alone that was chosen stands in its place, too, as somebody's own model.
    """
    simple = [candidate for candidate in report.candidates if candidate.kind in ("single", "ensemble")]
    return [chosen, *(candidate for candidate in simple if candidate.kind == "single" or candidate.id != chosen.id)]


def _matrix(report: Report, parties: Sequence[str], chosen: CandidateReport) -> list[MatrixRow]:
    """Return a line per party that was asked, those without numbers last."""
    rows = []
    for party in parties:
        party_report = report.parties[party]
        scale = scale_of(party_report.metric)
        peers = {row.removeprefix("peer:") for row in party_report.rows}
        cells = []
        for candidate in _columns(report, chosen):
            # Candidates c00 to c<K-1> are the members alone, in order.
            single = candidate.kind == "single"
            own = single and report.lineage.members[int(candidate.id[1:])].repo not in peers
            text = scale.text(candidate.metrics[party]) if party in candidate.metrics else ""
            cells.append(MatrixCell(text, candidate.id == chosen.id, own))
        apart = "; no model of its own, no part in the fit" if took_no_part(report, party) else ""
        n = f"n = {party_report.n:,}".replace(" ", "\N{NO-BREAK SPACE}")
        rows.append(MatrixRow(party, f"{scale.name}, {n}{apart}", tuple(cells)))
    return rows + [MatrixRow(missing.party, SHORT_REASONS[missing.reason], ()) for missing in report.missing]


def axis_of(intervals: Sequence[Interval], scale: Scale) -> tuple[Callable[[float], float], tuple[plot.Tick, ...]]:
    """Return the map from a value to its place, in per cent, on an axis that has room for all; and the ticks."""
    low, high = min(interval.low for interval in intervals), max(interval.high for interval in intervals)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    marks = plot.ticks(low, high, 4)
    decimals = scale.decimals_between(marks[1] - marks[0] if len(marks) > 1 else high - low)
    return at, tuple(plot.Tick(at(value), scale.number(value, decimals)) for value in marks)


def _candidate_rows(report: Report, parties: list[str]) -> list[CandidateRow]:
    """All candidates, the requester's best first."""
    scales = {party: scale_of(report.parties[party].metric) for party in parties}

    def rank(candidate: CandidateReport) -> float:
        value = candidate.metrics.get(report.requester, 0.0)
        return -value if report.requester in scales and scales[report.requester].higher_is_better else value

    return [
        CandidateRow(
            label=candidate.label,
            values=tuple(
                scales[party].text(candidate.metrics[party]) if party in candidate.metrics else "" for party in parties
            ),
            note="chosen" if candidate.id == report.chosen else "on the front" if candidate.front else "",
        )
        for candidate in sorted(report.candidates, key=rank)
    ]
