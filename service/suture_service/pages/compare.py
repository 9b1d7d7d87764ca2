"""`/-/compare`: models and jobs side by side, at each party that measured them, as reports have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Query, Request, Response

from suture_contract.documents import Interval, PartyReport, Report
from suture_contract.errors import SutureError
from suture_contract.report.html import axis_of
from suture_contract.report.plot import Tick
from suture_contract.report.words import METRIC_MEANINGS, samples, scale_of
from suture_service.auth import Caller
from suture_service.hf.routing import Namespace, RepoName, RouteRepo
from suture_service.hf.service import get_repo
from suture_service.hub import HubContext, HubDep
from suture_service.jobs import endpoints as jobs
from suture_service.jobs.schemas import JobOut
from suture_service.pages.frame import render
from suture_service.pages.jobs import read_report
from suture_service.pages.route import PageCaller, pages

router = pages()
#: So many are compared; among so many jobs, the newest, a report is looked for.
MOST, AMONG = 8, 60
_JOB = "job_"


@dataclass(frozen=True)
class Subject:
    """A model or a job's result, the report that has its numbers, or why there is none."""

    name: str
    job: JobOut | None = None
    report: Report | None = None
    problem: str = ""
    of_job: bool = False

    @property
    def made_at(self) -> datetime | None:
        """When the report was made."""
        return self.job.results[-1].created_at if self.job is not None and self.job.results else None


@dataclass(frozen=True)
class ComparedLine:
    """A subject at a party; `low`, `at` and `high` are positions on the drawn axis, in per cent."""

    subject: Subject
    value: str
    interval: str
    n: str
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class ComparedTable:
    """What was measured by one metric at one party."""

    party: str
    metric: str
    meaning: str
    lines: tuple[ComparedLine, ...]
    axis: tuple[Tick, ...]


@router.get("/-/compare")
def compare(
    hub: HubDep, request: Request, caller: PageCaller, of: Annotated[list[str] | None, Query(max_length=MOST)] = None
) -> Response:
    """Show models and jobs side by side; each entry of `of` holds one name or several, one in a line."""
    names = list(dict.fromkeys(name for entry in of or () for name in entry.split()))[:MOST]
    subjects = _subjects(hub, caller, names)
    return render(request, "compare.html.jinja", names=names, subjects=subjects, tables=_tables(subjects), most=MOST)


@router.get("/-/measured/{namespace}/{name}")
def show_measured(hub: HubDep, request: Request, caller: PageCaller, namespace: Namespace, name: RepoName) -> Response:
    """Show what was measured of a model and where, as a part of its page."""
    with hub.database.reading() as session:
        get_repo(session, caller, RouteRepo(namespace, name))
    subjects = _subjects(hub, caller, [f"{namespace}/{name}"])
    return render(request, "measured.html.jinja", tables=_tables(subjects), subject=subjects[0])


def _subjects(hub: HubContext, caller: Caller, names: Iterable[str]) -> list[Subject]:
    if not names:
        return []
    listed = jobs.list_jobs(hub, caller, None, AMONG, None).items
    with_report = [job for job in listed if job.results and caller.party in job.report_for]
    reports: dict[str, Report] = {}
    return [_subject(hub, caller, name, with_report, reports) for name in names]


def _subject(hub: HubContext, caller: Caller, name: str, listed: list[JobOut], reports: dict[str, Report]) -> Subject:
    """Return what the newest report says of a model or a job; jobs that are not among the listed are read."""
    try:
        job = jobs.get_job(hub, caller, name) if name.startswith(_JOB) else _newest_with(name, listed)
        if job is None:
            return Subject(name, problem="none of the newest reports that you may read has numbers of it")
        if job.id not in reports:
            reports[job.id] = read_report(hub, caller, job.id)
    except SutureError as error:
        return Subject(name, problem=error.message)
    return Subject(job.publish_as if name == job.id else name, job, reports[job.id], of_job=name == job.id)


def _newest_with(repo: str, listed: list[JobOut]) -> JobOut | None:
    """Return the newest job that made a model, else the newest that measured it as a member."""
    made = (job for job in listed if any(result.repo == repo for result in job.results))
    measured = (job for job in listed if any(model.repo == repo for model in job.models))
    return next(made, None) or next(measured, None)


def _tables(subjects: list[Subject]) -> list[ComparedTable]:
    """Return a table for each party and metric; the requester of the first report comes first."""
    rows: dict[tuple[str, str], list[tuple[Subject, PartyReport, Interval]]] = {}
    for subject in subjects:
        parties: Mapping[str, PartyReport] = subject.report.parties if subject.report is not None else {}
        for party, measured in parties.items():
            interval = _interval(subject, measured)
            if interval is not None:
                rows.setdefault((party, measured.metric), []).append((subject, measured, interval))
    return [_table(party, among) for (party, _), among in rows.items()]


def _interval(subject: Subject, measured: PartyReport) -> Interval | None:
    """Return what a party measured of a subject: a job's result is what was chosen, a member is the own or a peer."""
    made = {result.repo for result in subject.job.results} if subject.job is not None else ()
    if subject.of_job or subject.name in made:
        return measured.rows.get("chosen")
    peer = measured.rows.get(f"peer:{subject.name}")
    return peer if peer is not None else measured.rows.get("own")


def _table(party: str, among: list[tuple[Subject, PartyReport, Interval]]) -> ComparedTable:
    metric = among[0][1].metric
    scale = scale_of(metric)
    at, axis = axis_of([interval for _, _, interval in among], scale)
    lines = [
        ComparedLine(
            subject=subject,
            value=scale.text(interval.value),
            interval=f"{scale.number(interval.low)} to {scale.number(interval.high)}",
            n=samples(measured, " samples"),
            low=at(interval.low),
            at=at(interval.value),
            high=at(interval.high),
        )
        for subject, measured, interval in among
    ]
    return ComparedTable(party, scale.name, METRIC_MEANINGS[metric], tuple(lines), axis)
