"""`/v1/whoami`, `/v1/parties` and `/v1/tokens`."""

from __future__ import annotations

from fastapi import Response

from suture_service.auth import Caller, CallerDep
from suture_service.errors import answers
from suture_service.hub import HubContext, HubDep
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties import repository, service
from suture_service.parties.schemas import PartyIn, PartyOut, SiteState, TokenIn, TokenMade, TokenOut, WhoAmI
from suture_service.parties.service import is_online
from suture_service.route import room
from suture_service.tables import Party, Token

router = room("/v1", tag="parties")


@router.get("/whoami", responses=answers())
def whoami(caller: CallerDep) -> WhoAmI:
    """Say which party, or which site of it, the presented token belongs to."""
    return WhoAmI(party=caller.party, kind=caller.kind, roles=sorted(caller.roles), site=caller.site)


@router.get("/parties", responses=answers(422))
def list_parties(hub: HubDep, caller: CallerDep, limit: Limit = 50, cursor: Cursor = None) -> Page[PartyOut]:
    """List all parties by name, with their sites. Whom to ask is no secret among parties."""
    with hub.database.reading() as session:
        after = decode(cursor, str)
        rows = repository.list_parties(session, str(after[0]) if after else None, limit)
        return page(rows, limit, lambda party: _show(hub, caller, party), lambda party: (party.name,))


@router.get("/parties/{party}", responses=answers(404, 422))
def read_party(hub: HubDep, caller: CallerDep, party: str) -> PartyOut:
    """Read a party with its sites, as every party sees it."""
    with hub.database.reading() as session:
        return _show(hub, caller, service.get_party(session, party))


def _show(hub: HubContext, caller: Caller, party: Party) -> PartyOut:
    now, online = hub.now(), hub.settings.online_seconds
    tells = party.name == caller.party or "operator" in caller.roles
    sites = [
        SiteState(
            name=site.name,
            online=is_online(site, now, online),
            suspended=site.suspended_at is not None,
            last_seen_at=site.last_seen_at if tells else None,
            version=site.version if tells else None,
        )
        for site in party.sites
        if site.removed_at is None
    ]
    suspended = party.suspended_at is not None
    return PartyOut(name=party.name, created_at=party.created_at, suspended=suspended, sites=sites)


@router.post("/parties", status_code=201, responses=answers(403, 409, 422))
def add_party(hub: HubDep, caller: CallerDep, body: PartyIn) -> PartyOut:
    """Add a party (role `operator`)."""
    with hub.database.writing() as session:
        caller.require("operator")
        party = service.add_party(session, body.name, hub.now(), by=caller.name)
        return PartyOut(name=party.name, created_at=party.created_at, sites=[])


@router.post("/parties/{party}/tokens", status_code=201, responses=answers(403, 404, 422))
def add_token(hub: HubDep, caller: CallerDep, party: str, body: TokenIn) -> TokenMade:
    """Make a token (role `admin` of the party, or `operator`). The answer is the only place that ever shows it."""
    with hub.database.writing() as session:
        service.check_grant(caller, party, body.roles)
        token, secret = service.add_token(
            session,
            service.get_party(session, party),
            body.roles,
            hub.now(),
            name=body.name,
            days=body.days,
            by=caller.name,
        )
        return TokenMade(id=token.id, token=secret)


@router.get("/parties/{party}/tokens", responses=answers(403, 404, 422))
def list_tokens(hub: HubDep, caller: CallerDep, party: str, limit: Limit = 50, cursor: Cursor = None) -> Page[TokenOut]:
    """List a party's tokens and those of its sites, without secrets (role `admin` of the party, or `operator`)."""
    with hub.database.reading() as session:
        caller.require_rule_over(party)
        after = decode(cursor, str)
        owner = service.get_party(session, party)
        rows = repository.list_tokens(session, owner.id, str(after[0]) if after else None, limit)
        return page(rows, limit, _show_token, lambda token: (token.id,))


@router.delete("/tokens/{token_id}", status_code=204, responses=answers(404, 422))
def revoke_token(hub: HubDep, caller: CallerDep, token_id: str) -> Response:
    """Revoke a token at once (role `admin` of its party, or `operator`). Repeating it is harmless."""
    with hub.database.writing() as session:
        service.revoke(session, caller, token_id, hub.now())
        return Response(status_code=204)


def _show_token(token: Token) -> TokenOut:
    return TokenOut(
        id=token.id,
        name=token.name,
        site=token.site.name if token.site else None,
        roles=token.roles,
        created_at=token.created_at,
        expires_at=token.expires_at,
        last_used_at=token.last_used_at,
        revoked_at=token.revoked_at,
    )
