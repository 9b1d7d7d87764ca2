"""`/v1/models`: list, read, publish, change, download."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from sqlalchemy.orm import Session

from suture_service.auth import Caller, CallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.keys.flags import flags_of
from suture_service.keys.schemas import FlagOut
from suture_service.models import repository, search, service
from suture_service.models.publishing import check_and_keep, receive_parts
from suture_service.models.schemas import FileOut, ModelChange, ModelOut, RevisionOut, Visibility
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties.service import checked_name
from suture_service.route import room
from suture_service.tables import Revision

router = room("/v1/models", tag="models")

Rev = Annotated[str, Path(description="40 hex digits, enough of the first of them (7 or more), or `latest`.")]
_BINARY = {"type": "string", "format": "binary"}
_PARTS = {
    "type": "object",
    "required": ["model", "metadata"],
    "properties": {
        "model": {**_BINARY, "description": "`model.safetensors`, a portable model."},
        "metadata": {**_BINARY, "description": "`suture.json`."},
        "card": {**_BINARY, "description": "`README.md`, the model card."},
        "signature": {**_BINARY, "description": "`model.sig`, by a key that your party has registered."},
    },
    "additionalProperties": False,
}
_UPLOAD: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _PARTS}}}}
FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"application/octet-stream": {"schema": _BINARY}}},
    206: {"description": "The range that was asked for."},
    304: {"description": "The caller has it already (`If-None-Match`)."},
    **answers(404, 412, 416, 422),
}


@router.get("", responses=answers(422))
def list_models(
    hub: HubDep,
    caller: CallerDep,
    wanted: Annotated[search.ModelQuery, Depends(search.wanted)],
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[ModelOut]:
    """List the models the caller may read, narrowed to those that have all that is asked for."""
    with hub.database.reading() as session:
        rows = search.list_models(session, caller.party_id, wanted, cursor=cursor, limit=limit)
        flags = flags_of(session, [row.Revision.id for row in rows], caller.party_id)
        return page(
            rows,
            limit,
            lambda row: _show(row, caller, flags.get(row.Revision.id, [])),
            lambda row: search.key_of(row, wanted.sort),
        )


@router.get("/{party}/{name}", responses=answers(404, 422))
def get_model(hub: HubDep, caller: CallerDep, party: str, name: str) -> ModelOut:
    """Read a model. One that is private to others looks unknown."""
    with hub.database.reading() as session:
        return _show_flagged(session, service.get_model(session, caller, f"{party}/{name}"), caller)


@router.patch("/{party}/{name}", responses=answers(403, 404, 422))
def change_model(hub: HubDep, caller: CallerDep, party: str, name: str, body: ModelChange) -> ModelOut:
    """Change who may read an own model (role `publisher`)."""
    with hub.database.writing() as session:
        listed = service.own_model(session, caller, f"{party}/{name}")
        service.change(session, caller, listed.Model, hub.now(), body)
        return _show_flagged(session, listed, caller)


@router.get("/{party}/{name}/revisions", responses=answers(404, 422))
def list_revisions(
    hub: HubDep, caller: CallerDep, party: str, name: str, limit: Limit = 50, cursor: Cursor = None
) -> Page[RevisionOut]:
    """List a model's revisions, newest first."""
    with hub.database.reading() as session:
        before = decode(cursor, int)
        repo = f"{party}/{name}"
        service.get_model(session, caller, repo)
        rows = repository.list_revisions(session, caller.party_id, repo, int(before[0]) if before else None, limit)
        flags = flags_of(session, [revision.id for revision in rows], caller.party_id)
        return page(
            rows,
            limit,
            lambda revision: _show_revision(revision, flags.get(revision.id, [])),
            lambda revision: (revision.id,),
        )


@router.put(
    "/{party}/{name}/revisions",
    status_code=201,
    responses={
        200: {"model": RevisionOut, "description": "The model has this content already; nothing changed."},
        **answers(400, 403, 413, 422),
    },
    openapi_extra=_UPLOAD,
)
async def publish(
    hub: HubDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    party: str,
    name: str,
    visibility: Annotated[Visibility, Query(description="Applied only when this makes the model.")] = "private",
) -> RevisionOut:
    """Publish a revision (role `publisher`): all files or nothing, checked before anyone can see them.

    `curl -X PUT -H "Authorization: Bearer $TOKEN" -F model=@model.safetensors -F metadata=@suture.json
    $HUB/v1/models/north/digits/revisions`
    """
    caller.require_own(party, "publisher")
    checked_name(name, "name")
    content_type = request.headers.get("content-type")
    async with receive_parts(hub.store, hub.settings, request.stream(), content_type) as uploads:
        checked = await check_and_keep(hub, caller.party_id, uploads)

    def commit(session: Session) -> tuple[RevisionOut, bool]:
        revision, new = service.publish(
            session,
            party_id=caller.party_id,
            name=name,
            files=checked.files,
            checked=checked.says,
            signature=checked.signature,
            created_by=caller.name,
            now=hub.now(),
            visibility=visibility,
        )
        return show_revision(session, revision, caller), new

    shown, new = await hub.write(commit)
    if new:
        hub.metrics.published.inc()
    response.status_code = 201 if new else 200
    return shown


@router.get("/{party}/{name}/revisions/{revision}", responses=answers(404, 422))
def get_revision(hub: HubDep, caller: CallerDep, party: str, name: str, revision: Rev) -> RevisionOut:
    """Read a revision with its files."""
    with hub.database.reading() as session:
        return show_revision(session, service.get_revision(session, caller, f"{party}/{name}", revision), caller)


def _show_flagged(session: Session, row: repository.Listed, caller: Caller) -> ModelOut:
    return _show(row, caller, flags_of(session, [row.Revision.id], caller.party_id).get(row.Revision.id, []))


def _show(row: repository.Listed, caller: Caller, flags: list[FlagOut]) -> ModelOut:
    model, revision = row.Model, row.Revision
    own = model.party_id == caller.party_id
    return ModelOut(
        id=model.repo,
        party=model.party.name,
        name=model.name,
        visibility=model.visibility,
        gated=model.gated or "open",
        shared_with=sorted(share.party.name for share in model.shares) if own else [],
        revision=revision.revision,
        metadata=_metadata(revision),
        flags=flags,
        created_at=model.created_at,
        updated_at=model.updated_at,
    )


def show_revision(session: Session, revision: Revision, caller: Caller) -> RevisionOut:
    """Return a revision as the API shows it."""
    return _show_revision(revision, flags_of(session, [revision.id], caller.party_id).get(revision.id, []))


def _show_revision(revision: Revision, flags: list[FlagOut]) -> RevisionOut:
    return RevisionOut(
        id=revision.revision,
        repo=revision.model.repo,
        created_at=revision.created_at,
        created_by=revision.created_by,
        metadata=_metadata(revision),
        files=[FileOut(name=file.name, size=file.size, sha256=file.sha256) for file in revision.files],
        job=revision.job_id,
        signed_by=revision.key.fingerprint if revision.key is not None else None,
        flags=flags,
    )


def _metadata(revision: Revision) -> dict[str, Any]:
    assert revision.content is not None, "the API under /v1 shows only revisions that hold a portable model"
    return revision.content
