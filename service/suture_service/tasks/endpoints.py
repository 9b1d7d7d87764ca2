"""`/v1/tasks`: what a site does. Only the token of a site opens these."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from suture_service.auth import SiteDep
from suture_service.errors import answers
from suture_service.hub import HubDep, party_news
from suture_service.models.quota import take_room
from suture_service.models.trees import StoredFile
from suture_service.parties.schemas import MAX_INTEGER
from suture_service.route import room
from suture_service.tasks import service
from suture_service.tasks.schemas import (
    DeclineIn,
    FailIn,
    Heartbeat,
    HeartbeatIn,
    LeaseIn,
    ProgressIn,
    PutFile,
    ResultIn,
    TaskEnded,
    TaskLease,
    WaitIn,
)

router = room("/v1/tasks", tag="tasks")
TaskId = Annotated[str, Path(examples=["task_0c9d2e3a48576b1f"])]
_RAW = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "/lease",
    response_model=TaskLease,
    responses={204: {"description": "Nothing to do within `wait` seconds."}, **answers(403, 422)},
)
async def lease(hub: HubDep, site: SiteDep, request: Request, body: LeaseIn) -> TaskLease | Response:
    """Lease the oldest open task of your party, or wait up to `wait` seconds for one.

    The lease ends after `lease_seconds` unless a heartbeat renews it; then the task is open again with the next
    attempt and fence, and after the last attempt it has failed (`task.attempts_exhausted`).
    """
    await run_in_threadpool(service.note_presence, hub, site, request.headers.get("user-agent", ""))
    leased = await hub.poll(
        request, body.wait, party_news(site.party_id), lambda: run_in_threadpool(service.lease, hub, site)
    )
    return leased or Response(status_code=204)


@router.post("/{task_id}/heartbeat", responses=answers(403, 404, 409, 422))
def heartbeat(hub: HubDep, site: SiteDep, task_id: TaskId, body: HeartbeatIn) -> Heartbeat:
    """Renew the lease, and hear whether the work shall stop."""
    with hub.database.writing() as session:
        until, cancel = service.heartbeat(hub, session, site, task_id, body.fence)
        return Heartbeat(lease_expires_at=until, cancel=cancel)


@router.post("/{task_id}/progress", responses=answers(403, 404, 409, 422))
def progress(hub: HubDep, site: SiteDep, task_id: TaskId, body: ProgressIn) -> Heartbeat:
    """Say how far the task is; renews the lease like a heartbeat."""
    with hub.database.writing() as session:
        content = body.model_dump(exclude={"fence"})
        until, cancel = service.progress(hub, session, site, task_id, body.fence, content)
        return Heartbeat(lease_expires_at=until, cancel=cancel)


@router.post("/{task_id}/wait", responses=answers(403, 404, 409, 422))
def wait(hub: HubDep, site: SiteDep, task_id: TaskId, body: WaitIn) -> Heartbeat:
    """Say that the task waits for a person at the site; the lease then lasts a week, until any other heartbeat.

    Shown as its progress: "waiting for approval" or "waiting for release". Repeat it to hear of a cancelled job.
    """
    with hub.database.writing() as session:
        until, cancel = service.wait(hub, session, site, task_id, body.fence, body.waits_for)
        return Heartbeat(lease_expires_at=until, cancel=cancel)


@router.put(
    "/{task_id}/files/{name}",
    responses=answers(403, 404, 409, 413, 422),
    openapi_extra={"requestBody": {"required": True, "content": _RAW}},
)
async def put_file(
    hub: HubDep,
    site: SiteDep,
    request: Request,
    task_id: TaskId,
    name: str,
    fence: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="The `fence` of the lease.")],
) -> PutFile:
    """Put a file of the result, as the raw body; a file of the same name is replaced.

    `contribute`: moments.safetensors. `fit`: candidates.json, stitches.safetensors.
    `compose`: model.safetensors, suture.json, report.json.
    """
    limit = await hub.read(lambda session: service.file_limit(hub, session, site, task_id, fence, name))
    async with hub.store.receive(request.stream(), limit=limit, where=name) as upload:
        await take_room(hub, site.party_id, {upload.sha256: upload.size})
        await upload.keep()
    stored = StoredFile(upload.sha256, upload.size)
    await hub.write(lambda session: service.put_file(session, site, task_id, fence, name, stored))
    return PutFile(name=name, size=stored.size, sha256=stored.sha256)


@router.post("/{task_id}/result", responses=answers(403, 404, 409, 422))
async def result(hub: HubDep, site: SiteDep, task_id: TaskId, body: ResultIn) -> TaskEnded:
    """End the task with its result, which is checked together with the files put before.

    `evaluate`: an Evaluation. `fit`: `{"n": samples}`. `compose`: `{"chosen": candidate}`; the model is published in
    the same transaction. `match`: `{"n", "placements", "norms"}`. `contribute`: `{"n": {"train", "validation"}}`, with
    `epsilon` and `delta` where there is noise. Repeating the same result with the same fence is harmless.
    """
    finish = partial(service.finish, hub, site, task_id, body.fence, body.document)
    state = await hub.checks.run(site.party_id, finish)
    return TaskEnded(id=task_id, state=state)


@router.post("/{task_id}/fail", responses=answers(403, 404, 409, 422))
def fail(hub: HubDep, site: SiteDep, task_id: TaskId, body: FailIn) -> TaskEnded:
    """Say that the task could not be done. A code and a correlation id, no text: details stay in the site's log."""
    with hub.database.writing() as session:
        state = service.fail(
            hub, session, site, task_id, body.fence, body.code, body.correlation_id, retryable=body.retryable
        )
        return TaskEnded(id=task_id, state=state)


@router.post("/{task_id}/decline", responses=answers(403, 404, 409, 422))
def decline(hub: HubDep, site: SiteDep, task_id: TaskId, body: DeclineIn) -> TaskEnded:
    """Say that the site's policy does not allow the task."""
    with hub.database.writing() as session:
        return TaskEnded(id=task_id, state=service.decline(hub, session, site, task_id, body.fence, body.code))
