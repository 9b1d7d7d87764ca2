"""`/v1/audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from suture_service.audit import chain, repository
from suture_service.auth import Caller, CallerDep
from suture_service.errors import TooMany, answers
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


class AuditHeadOut(BaseModel):
    """A log in which every entry is as it was written."""

    entries: int = Field(examples=[4711])
    head: str = Field(description="The newest entry's number and digest, to be noted elsewhere: pass it as `expect`.")


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


@router.get("/audit/verify", responses=answers(403, 422, 429))
def verify_audit(
    hub: HubDep,
    caller: CallerDep,
    expect: Annotated[
        str | None,
        Query(max_length=100, description="A `head` that was noted earlier, outside the hub."),
    ] = None,
) -> AuditHeadOut:
    """Check that no entry of the hub's log was changed, removed or slipped in (role `auditor`).

    `audit.broken` names the first entry that does not fit. The whole log is read: one check at a time.
    """
    caller.require("auditor")
    if not hub.audit_check.acquire(blocking=False):
        raise TooMany("audit.busy", "somebody has the log checked just now", 5, hint="try again in a few seconds")
    try:
        with hub.database.reading() as session:
            head = chain.verify(session, chain.read_head(expect) if expect is not None else None)
    finally:
        hub.audit_check.release()
    return AuditHeadOut(entries=head.id, head=str(head))


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
