"""`/v1/parties/{party}` and its sites: suspend, resume, rename, remove; and what the party may fill."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from suture_service.auth import CallerDep
from suture_service.errors import HubError, answers
from suture_service.hub import HubDep
from suture_service.membership import service
from suture_service.membership.schemas import Affected, QuotaIn, QuotaOut, RenameIn
from suture_service.parties.service import get_party
from suture_service.route import room

router = room("/v1", tag="parties")
_REFUSALS = answers(403, 404, 422)
Confirmed = Annotated[str, Query(description="The name once more: a removal cannot be undone.", examples=["north"])]


@router.post("/parties/{party}/suspend", responses=_REFUSALS)
def suspend_party(hub: HubDep, caller: CallerDep, party: str) -> Affected:
    """Let none of a party's tokens open anything for now (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    return service.suspend_party(hub, party, by=caller.name)


@router.post("/parties/{party}/resume", responses=_REFUSALS)
def resume_party(hub: HubDep, caller: CallerDep, party: str) -> Affected:
    """Let a suspended party's tokens in again (role `operator`: those of the party itself open nothing)."""
    caller.require("operator")
    return service.resume_party(hub, party, by=caller.name)


@router.post("/parties/{party}/rename", responses=answers(403, 404, 409, 422))
def rename_party(hub: HubDep, caller: CallerDep, party: str, body: RenameIn) -> Affected:
    """Call a party otherwise (role `admin` of the party, or `operator`). Signatures hold for the old name alone."""
    caller.require_rule_over(party)
    return service.rename_party(hub, party, body.name, by=caller.name)


@router.delete("/parties/{party}", responses=_REFUSALS)
def remove_party(hub: HubDep, caller: CallerDep, party: str, confirm: Confirmed) -> Affected:
    """Let a party go for good, with its tokens, sites, people and models (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    _require_confirmed(party, confirm)
    return service.remove_party(hub, party, by=caller.name)


@router.get("/parties/{party}/quota", responses=_REFUSALS)
def get_quota(hub: HubDep, caller: CallerDep, party: str) -> QuotaOut:
    """Read what a party may fill, and what it does (any token of the party, or role `operator`)."""
    if "operator" not in caller.roles:
        caller.require_own(party, "reader")
    with hub.database.reading() as session:
        return service.quota_of(session, get_party(session, party), hub.settings)


@router.put("/parties/{party}/quota", responses=_REFUSALS)
def set_quota(hub: HubDep, caller: CallerDep, party: str, body: QuotaIn) -> QuotaOut:
    """Set what a party may fill (role `operator`)."""
    caller.require("operator")
    with hub.database.writing() as session:
        owner = get_party(session, party)
        service.set_quota(session, owner, body, by=caller.name)
        return service.quota_of(session, owner, hub.settings)


@router.post("/parties/{party}/sites/{site}/suspend", responses=_REFUSALS)
def suspend_site(hub: HubDep, caller: CallerDep, party: str, site: str) -> Affected:
    """Let a site in no more for now; its work is given back (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    return service.suspend_site(hub, party, site, by=caller.name)


@router.post("/parties/{party}/sites/{site}/resume", responses=_REFUSALS)
def resume_site(hub: HubDep, caller: CallerDep, party: str, site: str) -> Affected:
    """Let a suspended site in again (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    return service.resume_site(hub, party, site, by=caller.name)


@router.post("/parties/{party}/sites/{site}/rename", responses=answers(403, 404, 409, 422))
def rename_site(hub: HubDep, caller: CallerDep, party: str, site: str, body: RenameIn) -> Affected:
    """Call a site otherwise (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    return service.rename_site(hub, party, site, body.name, by=caller.name)


@router.delete("/parties/{party}/sites/{site}", responses=_REFUSALS)
def remove_site(hub: HubDep, caller: CallerDep, party: str, site: str, confirm: Confirmed) -> Affected:
    """Let a site go: its token ends, its work is given back (role `admin` of the party, or `operator`)."""
    caller.require_rule_over(party)
    _require_confirmed(site, confirm)
    return service.remove_site(hub, party, site, by=caller.name)


def _require_confirmed(name: str, confirm: str) -> None:
    if confirm != name:
        raise HubError(
            "request.unconfirmed", "a removal names what goes once more", where="confirm", hint=f"confirm={name}"
        )
