"""`/v1/audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from suture_service.audit import repository
from suture_service.auth import Caller, CallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.route import room
from suture_service.tables import AuditEntry

router = room("/v1", tag="audit")


class AuditOut(BaseModel):
    """One entry; where the actor is another party, `token_id`, `address` and `request_id` are left out."""

    id: int
    at: datetime
    actor: str = Field(examples=["north"])
    action: str = Field(examples=["model.publish"])
    what: str = Field(examples=["north/digits"])
    owner: str | None = Field(description="The party whose matter it is.", examples=["north"])
    token_id: str | None
    address: str | None
    request_id: str | None
    detail: dict[str, Any]
    redacted_by: int | None = Field(description="The entry that says that what this one said of a person is gone.")
    digest: str = Field(description="Chains this entry to the one before.")


@router.get("/audit", responses=answers(403, 422))
def list_audit(
    hub: HubDep,
    caller: CallerDep,
    action: Annotated[str | None, Query(max_length=64, description="Only this action, as `model.publish`.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditOut]:
    """List what your party did, and what was done to what is its own, newest first (role `auditor`).

    An operator that is an auditor too sees everything.
    """
    caller.require("auditor")
    before = decode(cursor, int)
    party = None if _sees_all(caller) else caller.party
    with hub.database.reading() as session:
        rows = repository.list_entries(session, party, action, int(before[0]) if before else None, limit)
        return page(rows, limit, lambda entry: _show(entry, caller), lambda entry: (entry.id,))


def _sees_all(caller: Caller) -> bool:
    return "operator" in caller.roles


def _show(entry: AuditEntry, caller: Caller) -> AuditOut:
    known = _sees_all(caller) or entry.party == caller.party
    return AuditOut(
        id=entry.id,
        at=entry.at,
        actor=entry.actor,
        action=entry.action,
        what=entry.what,
        owner=entry.owner,
        token_id=entry.token_id if known else None,
        address=entry.address if known else None,
        request_id=entry.request_id if known else None,
        detail=entry.detail,
        redacted_by=entry.redacted_by,
        digest=entry.digest,
    )
