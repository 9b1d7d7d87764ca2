"""`/v1/jobs`: ask, follow, cancel, try again, read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from sqlalchemy.orm import Session

from suture_contract.documents import Report
from suture_service.auth import CallerDep
from suture_service.errors import HubError, answers
from suture_service.hub import HubDep
from suture_service.jobs import repository, service
from suture_service.jobs.schemas import EventOut, EventsOut, JobIn, JobOut, WaitOut
from suture_service.kinds.schemas import JOB
from suture_service.models.endpoints import FILE_ANSWERS
from suture_service.models.service import REPORT
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties.schemas import MAX_INTEGER
from suture_service.route import room
from suture_service.states import ACTIVE_JOBS, JobState
from suture_service.storage.download import send_file
from suture_service.tables import Job

router = room("/v1/jobs", tag="jobs")
JobId = Annotated[str, Path(examples=[JOB])]


@router.post("", status_code=201, responses=answers(403, 404, 409, 422))
def create_job(hub: HubDep, caller: CallerDep, body: JobIn) -> JobOut:
    """Ask for a stitched ensemble (role `requester`).

    Refused before anyone works: `not_found` for a model you may not read, `job.incompatible` naming which models and
    why, `job.not_shared` where a party that shall work may not read a model, `party.unknown`, `job.no_site`.
    """
    with hub.database.writing() as session:
        return service.show(service.create(hub, session, caller, body), [])


@router.get("", responses=answers(422))
def list_jobs(
    hub: HubDep, caller: CallerDep, state: JobState | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Page[JobOut]:
    """List your party's jobs and those with a task for it, newest first."""
    with hub.database.reading() as session:
        before = _moment(decode(cursor, str, str))
        rows = repository.list_jobs(session, caller, state=state, before=before, limit=limit)
        results = repository.results_of(session, [job.id for job in rows])

        def show(job: Job) -> JobOut:
            return service.show(job, results.get(job.id, []))

        return page(rows, limit, show, lambda job: (job.created_at.isoformat(), job.id))


def _moment(key: tuple[Any, ...] | None) -> tuple[datetime, str] | None:
    if key is None:
        return None
    try:
        return datetime.fromisoformat(key[0]), key[1]
    except ValueError:
        raise HubError("request.cursor", "not a cursor of this list", where="cursor") from None


@router.get("/{job_id}", responses=answers(404, 422))
def get_job(hub: HubDep, caller: CallerDep, job_id: JobId) -> JobOut:
    """Read a job of your party, or one with a task for it."""
    with hub.database.reading() as session:
        job = service.get(session, caller, job_id)
        return show_job(session, job, service.waits(hub, session, job))


def show_job(session: Session, job: Job, waits: Mapping[str, WaitOut] | None = None) -> JobOut:
    """Return a job as the API shows it, with what its tasks wait for where that is told."""
    return service.show(job, repository.results_of(session, [job.id]).get(job.id, []), waits)


@router.post("/{job_id}/cancel", responses=answers(403, 404, 409, 422))
def cancel_job(hub: HubDep, caller: CallerDep, job_id: JobId) -> JobOut:
    """Cancel a job (role `requester`). Sites at work on it stop at their next heartbeat; repeating it is harmless."""
    with hub.database.writing() as session:
        return show_job(session, service.cancel(hub, session, caller, job_id))


@router.post("/{job_id}/retry", responses=answers(403, 404, 409, 422))
def retry_job(hub: HubDep, caller: CallerDep, job_id: JobId) -> JobOut:
    """Try a failed job again (role `requester`): its failed tasks are open again, with all attempts; done ones stay.

    So are tasks that its failure cut short, and those the requester's own site declined. Of a partial job, parties that
    failed or did not answer are asked again. `job.not_failed` for a job that ended otherwise, `quota.jobs` where the
    party has as many jobs under way as it may have; repeating it is harmless.
    """
    with hub.database.writing() as session:
        return show_job(session, service.retry(hub, session, caller, job_id))


@router.get("/{job_id}/events", responses=answers(404, 422))
async def job_events(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="The `next` of the answer before; 0 for all.")] = 0,
    wait: Annotated[float, Query(ge=0, le=25, description="Seconds to wait for something to happen.")] = 0,
) -> EventsOut:
    """Follow a job: what happened after an event, at once or as soon as something does."""

    def look(session: Session) -> EventsOut | None:
        ended = service.get(session, caller, job_id).state not in ACTIVE_JOBS
        rows = repository.list_events(session, job_id, after)
        items = [EventOut(seq=row.seq, at=row.at, task=row.task_id, kind=row.kind, data=row.data) for row in rows]
        return EventsOut(items=items, next=rows[-1].seq if rows else after) if rows or ended else None

    events = await hub.poll(request, wait, job_id, lambda: hub.read(look))
    return events or EventsOut(items=[], next=after)


@router.head("/{job_id}/report", include_in_schema=False)
@router.get("/{job_id}/report", response_class=Response, responses={**FILE_ANSWERS, 200: {"model": Report}})
async def job_report(hub: HubDep, caller: CallerDep, request: Request, job_id: JobId) -> Response:
    """Download the party report of your party's job, or of one whose candidates it has evaluated."""
    file = await hub.read(lambda session: service.get_report(session, caller, job_id))
    return await send_file(request, hub.store, name=REPORT, sha256=file.sha256, size=file.size)


@router.head("/{job_id}/files/{name}", include_in_schema=False)
@router.get("/{job_id}/files/{name}", response_class=Response, responses=FILE_ANSWERS)
async def job_file(hub: HubDep, caller: CallerDep, request: Request, job_id: JobId, name: str) -> Response:
    """Download `candidates.json` or `stitches.safetensors`: your party's job, or one your site holds a lease in.

    `moments.<party>` is what a party contributed, for the site that holds the lease of the fit.
    """
    file = await hub.read(lambda session: service.get_file(session, caller, job_id, name))
    return await send_file(request, hub.store, name=name, sha256=file.sha256, size=file.size)
