"""`/v1/access`, `/v1/models/{party}/{name}/access`, and the files of models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from suture_service.access import repository, service
from suture_service.access.schemas import AccessIn, AccessOut, AccessState, Decision
from suture_service.auth import Caller, CallerDep, DownloadCallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.models.endpoints import FILE_ANSWERS, Rev
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.route import room
from suture_service.storage.download import send_file
from suture_service.tables import AccessRequest, Model

router = room("/v1", tag="access")


@router.get("/access", responses=answers(403, 422))
def list_requests(
    hub: HubDep,
    caller: CallerDep,
    state: Annotated[AccessState | None, Query(description="Only those in this state.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AccessOut]:
    """List who asked for your party's gated models (role `steward` or `admin`)."""
    service.require_steward(caller)
    after = decode(cursor, str, str)
    with hub.database.reading() as session:
        rows = repository.list_requests(
            session,
            caller.party_id,
            state=state,
            after=(str(after[0]), str(after[1])) if after else None,
            limit=limit,
        )
        return page(rows, limit, _show, lambda asked: (asked.model.name, asked.party.name))


@router.post("/models/{party}/{name}/access", status_code=201, responses=answers(404, 409, 422))
def ask(hub: HubDep, caller: CallerDep, party: str, name: str, body: AccessIn) -> AccessOut:
    """Ask for the files of a gated model, for your party. Repeating it is harmless."""
    with hub.database.writing() as session:
        return _show(service.ask(session, caller, f"{party}/{name}", body.reason, hub.now()))


@router.get("/models/{party}/{name}/access", responses=answers(404, 422))
def own_request(hub: HubDep, caller: CallerDep, party: str, name: str) -> AccessOut:
    """Read what became of your party's request."""
    with hub.database.reading() as session:
        return _show(service.own_request(session, caller, f"{party}/{name}"))


@router.put("/models/{party}/{name}/access/{asker}", responses=answers(403, 404, 422))
def decide(hub: HubDep, caller: CallerDep, party: str, name: str, asker: str, body: Decision) -> AccessOut:
    """Accept a party's request, for good or for some days, or refuse it, now or later (role `steward` or `admin`)."""
    with hub.database.writing() as session:
        return _show(service.decide(session, caller, f"{party}/{name}", asker, body, hub.now()))


@router.head("/models/{party}/{name}/revisions/{revision}/files/{file}", include_in_schema=False)
@router.get(
    "/models/{party}/{name}/revisions/{revision}/files/{file}",
    response_class=Response,
    responses=FILE_ANSWERS,
    tags=["models"],
)
async def download(
    hub: HubDep, caller: DownloadCallerDep, request: Request, party: str, name: str, revision: Rev, file: str
) -> Response:
    """Download a file such as `model.safetensors`, `suture.json` or `README.md`; whole or a `Range` of it."""
    stored = await hub.read(
        lambda session: service.get_file(session, caller, f"{party}/{name}", revision, file, hub.now())
    )
    return await send_file(request, hub.store, name=stored.name, sha256=stored.sha256, size=stored.size)


def request_for(session: Session, caller: Caller, model: Model) -> AccessOut | None:
    """Return what the caller's party asked of a model that it may read; None where it asked nothing."""
    asked = repository.find_request(session, model.id, caller.party_id)
    return _show(asked) if asked is not None else None


def requests_for(session: Session, caller: Caller, model: Model, now: datetime) -> list[AccessOut]:
    """Return who waits for a gated model's files, and who gets them, for who decides; nothing for anybody else."""
    if not model.gated or model.party_id != caller.party_id or not service.is_steward(caller):
        return []
    return [_show(asked) for asked in repository.requests_of(session, model.id, ("pending", "accepted"), now)]


def open_requests(session: Session, caller: Caller, most: int) -> list[AccessOut]:
    """Return what the caller's party asked for and has no answer to, the oldest first."""
    return [_show(asked) for asked in repository.pending_of(session, caller.party_id, most)]


def _show(asked: AccessRequest) -> AccessOut:
    return AccessOut(
        model=asked.model.repo,
        party=asked.party.name,
        state=asked.state,
        reason=asked.reason,
        answer=asked.answer,
        requested_at=asked.requested_at,
        decided_at=asked.decided_at,
        expires_at=asked.expires_at,
    )
