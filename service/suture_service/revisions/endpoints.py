"""The lineage, the signature and the withdrawal of a revision."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from sqlalchemy.orm import Session

from suture_contract.model.signature import MAX_SIGNATURE, SIGNATURE
from suture_service.auth import CallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.keys.lineage import lineage_of
from suture_service.keys.schemas import LineageOut, TakenBack
from suture_service.models.endpoints import Rev, show_revision
from suture_service.models.schemas import RevisionOut
from suture_service.models.service import get_revision
from suture_service.models.trees import StoredFile
from suture_service.revisions import service
from suture_service.route import room

router = room("/v1", tag="keys")

_BUNDLE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/models/{party}/{name}/revisions/{revision}/lineage", tags=["models"], responses=answers(404, 422))
def get_lineage(hub: HubDep, caller: CallerDep, party: str, name: str, revision: Rev) -> LineageOut:
    """Read what a revision was made of, and what was made of it, as far as it is shared with you."""
    with hub.database.reading() as session:
        resolved = get_revision(session, caller, f"{party}/{name}", revision)
        return lineage_of(session, resolved, caller.party_id)


@router.put(
    "/models/{party}/{name}/revisions/{revision}/signature",
    status_code=201,
    responses={200: {"model": RevisionOut, "description": "It is signed so already."}, **answers(403, 404, 409, 422)},
    openapi_extra=_BUNDLE,
)
async def sign(
    hub: HubDep, caller: CallerDep, request: Request, response: Response, party: str, name: str, revision: Rev
) -> RevisionOut:
    """Add a signature to the newest revision of an own model (role `publisher`): a new revision with `model.sig`."""
    caller.require_own(party, "publisher")
    repo = f"{party}/{name}"
    await hub.read(lambda session: get_revision(session, caller, repo, revision).id)
    async with hub.store.receive(request.stream(), limit=MAX_SIGNATURE, where=SIGNATURE) as upload:
        signature = upload.read(0, upload.size)
        await upload.keep()
    stored = StoredFile(upload.sha256, upload.size)

    def write(session: Session) -> tuple[RevisionOut, bool]:
        signed, new = service.sign(session, caller, repo, revision, signature, stored, hub.now())
        return show_revision(session, signed, caller), new

    shown, new = await hub.write(write)
    response.status_code = 201 if new else 200
    return shown


@router.post("/models/{party}/{name}/revisions/{revision}/withdraw", responses=answers(403, 404, 422))
def withdraw(hub: HubDep, caller: CallerDep, party: str, name: str, revision: Rev, body: TakenBack) -> RevisionOut:
    """Withdraw a revision of an own model for good (role `publisher`). It, and all that was made of it, is flagged."""
    with hub.database.writing() as session:
        withdrawn = service.withdraw(session, caller, f"{party}/{name}", revision, body.reason, hub.now())
        session.flush()
        return show_revision(session, withdrawn, caller)
