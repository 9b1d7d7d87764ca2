"""Requests for the files of gated repositories, as the official client handles them: a user is a party here."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from suture_contract.unseen import legible
from suture_service.access import repository as requests
from suture_service.access import service as access
from suture_service.auth import CallerDep
from suture_service.hf import service
from suture_service.hf.errors import BadRequest
from suture_service.hf.routing import RepoDep, hub_router
from suture_service.hf.schemas import AccessGrant, AccessHandled, AccessListed, AccessUser, HubAccessState
from suture_service.hub import HubDep
from suture_service.tables import AccessRequest

router = hub_router()
_ACCESS = "/api/models/{namespace}/{name}/user-access-request"
#: What the client calls a state, and what it is called here.
_STATES = {"pending": "pending", "accepted": "accepted", "rejected": "refused"}
_CALLED = {ours: theirs for theirs, ours in _STATES.items()}
#: What an owner reads where the asker gave no reason.
NO_REASON = "(no reason given)"


@router.get(_ACCESS + "/{status}")
def list_access(hub: HubDep, caller: CallerDep, repo: RepoDep, status: HubAccessState) -> list[AccessListed]:
    """List who asked for the files of an own repository (role `steward` or `admin`)."""
    with hub.database.reading() as session:
        model = access.own_gate(caller, service.get_repo(session, caller, repo))
        rows = requests.requests_of(session, model.id, [_STATES[status]], hub.now())
        return [_show(row) for row in rows]


@router.post(_ACCESS + "/handle")
def handle_access(hub: HubDep, caller: CallerDep, repo: RepoDep, body: AccessHandled) -> dict[str, Any]:
    """Accept or reject a request, or let it wait again; by party, or by the request's id."""
    party = body.user or _party_of(body.request_id)
    with hub.database.writing() as session:
        model = access.own_gate(caller, service.get_repo(session, caller, repo))
        words = body.rejection_reason or ""
        access.settle(session, caller, model, party, _STATES[body.status], hub.now(), answer=words)
    return {}


@router.post(_ACCESS + "/grant")
def grant_access(hub: HubDep, caller: CallerDep, repo: RepoDep, body: AccessGrant) -> dict[str, Any]:
    """Give a party the files of an own repository, whether it asked or not."""
    with hub.database.writing() as session:
        model = access.own_gate(caller, service.get_repo(session, caller, repo))
        access.grant(session, caller, model, body.user, hub.now())
    return {}


@router.post("/{namespace}/{name}/ask-access")
async def ask_access(hub: HubDep, caller: CallerDep, request: Request, repo: RepoDep) -> dict[str, Any]:
    """Ask for the files of a gated repository, for the caller's party; a form's `reason` is what its owner reads."""
    async with request.form(max_files=0, max_fields=20, max_part_size=16 * 1024) as form:
        reason = " ".join(str(form.get("reason", "")).split()) or NO_REASON
    if len(reason) > 1000:
        raise BadRequest("access.reason", "longer than 1000 characters", where="reason")
    try:
        legible(reason)
    except ValueError as error:
        raise BadRequest("access.reason", str(error), where="reason", hint="write it without them") from None

    def ask(session: Any) -> str:
        model = service.get_repo(session, caller, repo)
        return _CALLED[access.ask_for(session, caller, model, reason, hub.now()).state]

    return {"status": await hub.write(ask)}


def _party_of(request_id: str | None) -> str:
    """Return the party that a request's id names: it is the party's name, as each asks once."""
    if not request_id:
        raise BadRequest(
            "access.user", "say whose request it is", where="user", hint="name the party, or the requestId"
        )
    return request_id


def _show(asked: AccessRequest) -> AccessListed:
    party = asked.party.name
    return AccessListed(
        request_id=party,
        user=AccessUser(user=party, fullname=party),
        status=_CALLED[asked.state],
        timestamp=asked.requested_at,
        fields={"reason": asked.reason},
    )
