"""`/-/jobs`: ask for a stitched ensemble, follow the work, read the report."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.failures import meaning
from suture_contract.pages import url
from suture_contract.report.html import to_body
from suture_contract.report.rows import complete
from suture_service.auth import Caller
from suture_service.errors import HubError
from suture_service.hf.errors import RepoNotFound, RevisionNotFound
from suture_service.hf.routing import RoutePlace
from suture_service.hf.service import get_at
from suture_service.hub import HubContext, HubDep
from suture_service.jobs import endpoints as jobs
from suture_service.jobs import service
from suture_service.jobs.picking import MOST, choices, own_datasets
from suture_service.jobs.schemas import JobIn, JobOut, TaskOut
from suture_service.models.repository import MAIN
from suture_service.models.trees import StoredFile
from suture_service.pages.account import other_parties
from suture_service.pages.content import read_stored
from suture_service.pages.forms import read_form, status_of
from suture_service.pages.frame import next_of, render
from suture_service.pages.route import PageCaller, own_form, pages
from suture_service.paging import Cursor
from suture_service.parties import endpoints as parties
from suture_service.states import ACTIVE_JOBS, ACTIVE_TASKS, JobState, TaskState

router = pages()
PAGE = 25
#: In seconds, between two looks at a job: the longer nothing has happened, the longer.
SOONEST, LATEST = 2, 60
#: What a page asks of other parties, one line each.
MAX_ASKED = 200
Name = Annotated[str, Form(max_length=300)]
#: More parties than these stand in a list where they are seldom asked.
FEW = 50
_WAITS = {
    "site_offline": "its site is away",
    "queued": "its site is at work on something else",
    "approval": "a person there has to approve it, in the site's console or with suture site inbox",
    "release": "a person there has to release the result, in the site's console or with suture site outbox",
}
_KINDS = {
    "fit": "fit stitches",
    "match": "find places to join",
    "contribute": "contribute moments",
    "evaluate": "measure candidates",
    "compose": "put together, write report",
}


@router.get("/-/jobs")
def list_jobs(
    hub: HubDep, request: Request, caller: PageCaller, state: JobState | None = None, cursor: Cursor = None
) -> Response:
    """List the party's jobs and those it takes part in, newest first."""
    results = jobs.list_jobs(hub, caller, state, PAGE, cursor)
    more = next_of("/-/jobs", results, state=state)
    return render(request, "jobs.html.jinja", jobs=results.items, more=more, state=state, states=list(JobState))


@router.get("/-/jobs/new")
def ask(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    model: Annotated[list[str] | None, Query(max_length=MOST)] = None,
    dataset: Annotated[str, Query(max_length=200)] = "",
    evaluate_at: Annotated[list[str] | None, Query(max_length=MAX_ASKED)] = None,
) -> Response:
    """Show the form for a new job, with these models, this dataset and these parties in it."""
    values = {"model": model or [], "dataset": dataset, "evaluate_at": evaluate_at or []}
    return _form(hub, request, caller, values, None)


class _JobForm:
    """What the form for a new job holds; a dependency."""

    def __init__(
        self,
        model: Annotated[list[Name] | None, Form(max_length=MOST)] = None,
        models: Annotated[str, Form(max_length=4000)] = "",
        search: Annotated[str, Form(max_length=200)] = "",
        dataset: Annotated[str, Form(max_length=200)] = "",
        evaluate_at: Annotated[list[str] | None, Form(max_length=MAX_ASKED)] = None,
        contribute_from: Annotated[list[str] | None, Form(max_length=MAX_ASKED)] = None,
        publish_as: Annotated[str, Form(max_length=200)] = "",
        days: Annotated[int, Form(ge=1, le=28)] = 1,
    ) -> None:
        self.values: dict[str, Any] = {
            "model": list(dict.fromkeys(model or ())),
            "models": models,
            "search": search.strip(),
            "dataset": dataset,
            "evaluate_at": evaluate_at or [],
            "contribute_from": contribute_from or [],
            "publish_as": publish_as,
            "days": days,
        }

    def read(self, hub: HubContext, caller: Caller) -> JobIn:
        """Return what is asked for; raises `SutureError`, `request.invalid` naming the field."""
        fields = self.values
        named = [_whole(hub, caller, name).partition("@") for name in named_models(fields)]
        return read_form(
            JobIn,
            models=[{"repo": repo, "revision": revision or None} for repo, _, revision in named],
            dataset=fields["dataset"],
            evaluate_at=fields["evaluate_at"],
            contribute_from=fields["contribute_from"],
            publish_as=fields["publish_as"] or None,
            evaluate_within=int(timedelta(days=fields["days"]).total_seconds()),
        )


AskedForm = Annotated[_JobForm, Depends()]


def named_models(fields: dict[str, Any]) -> list[str]:
    """Return the models that a form names, picked or typed, each once."""
    return list(dict.fromkeys([*fields["model"], *fields["models"].split()]))


def _whole(hub: HubContext, caller: Caller, name: str) -> str:
    """Return a model as a job names it, `party/name` or `party/name@` and the whole id of a revision.

    A branch, a tag, the id of a commit and the first digits of an id mean the revision that is there now. Raises
    `HubError` `revision.not_found`. Of a model that the caller may not read, nothing is looked up.
    """
    repo, _, asked = name.partition("@")
    if asked in ("", MAIN, "latest"):
        return repo
    place = RoutePlace(*repo.partition("/")[::2], asked)
    with hub.database.reading() as session:
        try:
            revision = get_at(session, caller, place).commit.revision
        except RepoNotFound:
            return name
        except RevisionNotFound:
            newest = get_at(session, caller, replace(place, revision=MAIN)).commit.revision.revision
            hint = f"name a branch, a tag, or seven digits or more of an id; the newest is {repo}@{newest}"
            raise HubError("revision.not_found", f"{repo} has no revision {asked}", where=name, hint=hint) from None
        if revision.content is None:
            hint = f"look at its files: {url(place.namespace, place.name, 'tree', asked)}"
            raise HubError("revision.not_found", "there is no portable model in this revision", where=name, hint=hint)
        return f"{repo}@{revision.revision}"


@router.post("/-/jobs/new", dependencies=[Depends(own_form)])
def create(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    form: AskedForm,
    find: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Ask for a stitched ensemble; where it is refused, show the form again with the reason.

    With `find`, ask for nothing yet: show the form with the models that its search finds.
    """
    if find:
        return _form(hub, request, caller, form.values, None)
    try:
        job = jobs.create_job(hub, caller, form.read(hub, caller))
    except SutureError as error:
        return _form(hub, request, caller, form.values, error)
    return RedirectResponse(f"/-/jobs/{job.id}", status_code=303)


@router.post("/-/jobs/models", dependencies=[Depends(own_form)])
def pick(hub: HubDep, request: Request, caller: PageCaller, form: AskedForm) -> Response:
    """Show the models that are picked and those that go with them, while the form is filled in."""
    return render(request, "job_models.html.jinja", **_models(hub, caller, form.values))


@router.post("/-/jobs/check", dependencies=[Depends(own_form)])
def check(hub: HubDep, request: Request, caller: PageCaller, form: AskedForm) -> Response:
    """Say what would keep the job from being taken, while the form is filled in."""
    problem, revisions = None, []
    try:
        asked = form.read(hub, caller)
        with hub.database.reading() as session:
            _, checked = service.check(hub, session, caller, asked)
            revisions = [service.member(revision) for revision in checked]
    except SutureError as error:
        problem = error
    named = named_models(form.values)
    return render(request, "job_check.html.jinja", problem=problem, members=revisions, form=form.values, named=named)


@router.get("/-/jobs/{job_id}")
def show_job(hub: HubDep, request: Request, caller: PageCaller, job_id: str) -> Response:
    """Show a job; the part that changes keeps itself up to date."""
    return render(request, "job.html.jinja", **_shown(hub, caller, job_id))


@router.get("/-/jobs/{job_id}/live")
def live(hub: HubDep, request: Request, caller: PageCaller, job_id: str) -> Response:
    """Show the part of a job's page that changes."""
    return render(request, "job_live.html.jinja", **_shown(hub, caller, job_id))


@router.post("/-/jobs/{job_id}/cancel", dependencies=[Depends(own_form)])
def cancel(hub: HubDep, caller: PageCaller, job_id: str) -> Response:
    """Cancel a job."""
    return RedirectResponse(f"/-/jobs/{jobs.cancel_job(hub, caller, job_id).id}", status_code=303)


@router.post("/-/jobs/{job_id}/retry", dependencies=[Depends(own_form)])
def retry(hub: HubDep, caller: PageCaller, job_id: str) -> Response:
    """Try a job again."""
    return RedirectResponse(f"/-/jobs/{jobs.retry_job(hub, caller, job_id).id}", status_code=303)


@router.get("/-/jobs/{job_id}/report")
def show_report(hub: HubDep, request: Request, caller: PageCaller, job_id: str) -> Response:
    """Show the newest party report of a job."""
    with hub.database.reading() as session:
        row = service.get(session, caller, job_id)
        job, file = jobs.show_job(session, row), service.report_of(session, caller, row)
        members = list(zip(job.models, service.trainings(session, caller, row), strict=True))
        ended = service.ended_at(row)
    measured = [
        (task.party, _KINDS.get(task.kind, task.kind), ended[task.id]) for task in job.tasks if task.id in ended
    ]
    report = _read(hub, job_id, file)
    try:
        body = to_body(report)
    except (ValueError, LookupError, ArithmeticError, StopIteration):
        raise _no_drawing(job_id) from None
    return render(request, "report.html.jinja", job=job, body=body, members=members, measured=measured)


def read_report(hub: HubContext, caller: Caller, job_id: str) -> Report:
    """Return the newest party report of a job; raises `HubError` `report.unreadable`."""
    with hub.database.reading() as session:
        file = service.get_report(session, caller, job_id)
    return _read(hub, job_id, file)


def _read(hub: HubContext, job_id: str, file: StoredFile) -> Report:
    content = read_stored(hub, file.sha256, 0, file.size, file.size)
    try:
        return complete(Report.model_validate_json(content))
    except (ValueError, LookupError, StopIteration):
        raise _no_drawing(job_id) from None


def _no_drawing(job_id: str) -> HubError:
    # What a site sent fits its form, and need not make sense: numbers may be missing that a drawing needs.
    hint = f"suture report {job_id} writes what it says"
    return HubError("report.unreadable", "this report cannot be drawn", where=job_id, hint=hint)


def _form(
    hub: HubContext, request: Request, caller: Caller, values: dict[str, Any], problem: SutureError | None
) -> Response:
    everyone = parties.list_parties(hub, caller, MAX_ASKED, None).items
    others = [party for party in everyone if party.name != caller.party and party.sites]
    names: dict[str, Any] = {"model": [], "models": "", "search": ""}
    blank = {**names, "dataset": "", "evaluate_at": [], "contribute_from": [], "publish_as": "", "days": 1}
    return render(
        request,
        "job_new.html.jinja",
        status_of(problem),
        **_models(hub, caller, {**blank, **values}),
        others=others,
        datasets=own_datasets(hub, caller),
        problem=problem,
        elsewhere=other_parties(hub, caller),
        few=FEW,
    )


def _models(hub: HubContext, caller: Caller, values: dict[str, Any]) -> dict[str, Any]:
    refused: dict[str, str] = {}
    names = []
    for name in values["model"]:
        try:
            names.append(_whole(hub, caller, name))
        except SutureError as error:
            names.append(name)
            refused[name] = f"{error.message}; {error.hint}"
    return {"form": values, "choices": choices(hub, caller, names, values["search"], refused)}


def _shown(hub: HubContext, caller: Caller, job_id: str) -> dict[str, Any]:
    job = jobs.get_job(hub, caller, job_id)
    with hub.database.reading() as session:
        last = service.last_event(session, job_id)
    quiet = (hub.now() - last).total_seconds()
    active = job.state in ACTIVE_JOBS
    awaited = any(task.state in (TaskState.LATE, TaskState.LEASED) for task in job.tasks)
    own = job.requester == caller.party
    return {
        "job": job,
        "own": own and "requester" in caller.roles,
        "active": active,
        "again": job.state in (JobState.FAILED, JobState.PARTIAL),
        "pause": round(min(max(quiet / 20, SOONEST), LATEST)) if active or awaited else None,
        "tasks": [(task, _KINDS.get(task.kind, task.kind), _waits(task), _meaning(task, job)) for task in job.tasks],
        "ended": sum(task.state not in (*ACTIVE_TASKS, TaskState.LATE) for task in job.tasks),
        "failure": meaning(job.error.code, job.error.correlation_id, job.id, _repos(job))
        if job.error is not None
        else None,
        "reads_report": bool(job.results) and caller.party in job.report_for,
    }


def _waits(task: TaskOut) -> str:
    return _WAITS[task.waits.why] if task.waits is not None else ""


def _meaning(task: TaskOut, job: JobOut) -> tuple[str, str] | None:
    return meaning(task.reason, None, job.id, _repos(job)) if task.reason and task.state != TaskState.DONE else None


def _repos(job: JobOut) -> list[str]:
    return [member.repo for member in job.models]
