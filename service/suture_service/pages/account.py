"""`/-/account` and what a party's admins, stewards and auditors do: tokens, people, sites, access, the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from suture_contract.errors import SutureError
from suture_contract.pages import HEADERS, url
from suture_service.access import endpoints as access
from suture_service.access.schemas import AccessState, Decision
from suture_service.audit import endpoints as audit
from suture_service.audit.endpoints import AuditHeadOut
from suture_service.auth import Caller, Role
from suture_service.hub import HubContext, HubDep
from suture_service.keys import endpoints as keys
from suture_service.keys.schemas import TakenBack
from suture_service.membership import endpoints as membership
from suture_service.membership.schemas import QuotaIn
from suture_service.pages.forms import read_form, status_of
from suture_service.pages.frame import next_of, render
from suture_service.pages.route import PageCaller, own_form, pages
from suture_service.paging import Cursor
from suture_service.parties import endpoints as parties
from suture_service.parties.schemas import PartyIn, TokenIn
from suture_service.people import endpoints as people
from suture_service.people.schemas import PersonIn, RolesIn
from suture_service.people.service import parties_of
from suture_service.sites import endpoints as sites
from suture_service.sites.schemas import SiteIn

router = pages()
PAGE = 100
#: What a token can be given; `reader` has every one.
ROLES = tuple(role for role in get_args(Role) if role != "reader")

Text = Annotated[str, Form(max_length=1000)]
RoleList = Annotated[list[str] | None, Form(max_length=len(ROLES))]
FORM = [Depends(own_form)]
_ADMIN = "/-/admin/{party}"


@router.get("/-/account")
def account(hub: HubDep, request: Request, caller: PageCaller) -> Response:
    """Show who is signed in, what that allows, and as which other party the same person may act."""
    return render(request, "account.html.jinja", rules=_rules(caller, caller.party), others=other_parties(hub, caller))


@router.get(_ADMIN)
def admin(hub: HubDep, request: Request, caller: PageCaller, party: str) -> Response:
    """Show a party's tokens, people, sites and keys."""
    return _admin(hub, request, caller, party)


@router.post(_ADMIN + "/tokens", dependencies=FORM)
def add_token(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    party: str,
    name: Text = "",
    roles: RoleList = None,
    days: Annotated[int | None, Form(ge=1, le=3660)] = None,
) -> Response:
    """Make a token, and show it this once."""
    try:
        asked = read_form(TokenIn, roles=roles or [], name=name or None, days=days)
        made = parties.add_token(hub, caller, party, asked)
    except SutureError as error:
        return _admin(hub, request, caller, party, problem=error)
    return _admin(hub, request, caller, party, secret=("token", made.id, made.token))


@router.post(_ADMIN + "/tokens/{token_id}/revoke", dependencies=FORM)
def revoke_token(hub: HubDep, caller: PageCaller, party: str, token_id: str) -> Response:
    """Revoke a token at once."""
    parties.revoke_token(hub, caller, token_id)
    return _back(party)


@router.post(_ADMIN + "/sites", dependencies=FORM)
def add_site(hub: HubDep, request: Request, caller: PageCaller, party: str, name: Text = "") -> Response:
    """Add a site, and show its token this once."""
    try:
        made = sites.add_site(hub, caller, party, read_form(SiteIn, name=name))
    except SutureError as error:
        return _admin(hub, request, caller, party, problem=error)
    return _admin(hub, request, caller, party, secret=("site", made.site, made.token))


@router.post(_ADMIN + "/people", dependencies=FORM)
def add_person(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    party: str,
    name: Text = "",
    email: Text = "",
    subject: Text = "",
    roles: RoleList = None,
) -> Response:
    """Register a person who may sign in at the identity provider."""
    try:
        asked = read_form(PersonIn, name=name, email=email or None, subject=subject or None, roles=roles or [])
        people.add_person(hub, caller, party, asked)
    except SutureError as error:
        return _admin(hub, request, caller, party, problem=error)
    return _back(party)


@router.post(_ADMIN + "/people/{person}", dependencies=FORM)
def change_roles(hub: HubDep, caller: PageCaller, party: str, person: str, roles: RoleList = None) -> Response:
    """Give a person other roles."""
    people.change_roles(hub, caller, party, person, read_form(RolesIn, roles=roles or []))
    return _back(party)


@router.post(_ADMIN + "/people/{person}/remove", dependencies=FORM)
def remove_person(hub: HubDep, caller: PageCaller, party: str, person: str) -> Response:
    """Remove a person."""
    people.remove(hub, caller, party, person)
    return _back(party)


@router.post(_ADMIN + "/keys/{fingerprint}/revoke", dependencies=FORM)
def revoke_key(hub: HubDep, caller: PageCaller, party: str, fingerprint: str, reason: Text = "") -> Response:
    """Revoke a key for good."""
    keys.revoke(hub, caller, party, fingerprint, read_form(TakenBack, reason=reason))
    return _back(party)


@router.post(_ADMIN + "/quota", dependencies=FORM)
def set_quota(hub: HubDep, caller: PageCaller, party: str, max_bytes: Text = "", max_jobs: Text = "") -> Response:
    """Set what a party may fill."""
    membership.set_quota(hub, caller, party, read_form(QuotaIn, max_bytes=max_bytes or None, max_jobs=max_jobs or None))
    return _back(party)


@router.post("/-/parties", dependencies=FORM)
def add_party(hub: HubDep, caller: PageCaller, name: Text = "") -> Response:
    """Add a party."""
    return _back(parties.add_party(hub, caller, read_form(PartyIn, name=name)).name)


@router.get("/-/access")
def list_access(
    hub: HubDep, request: Request, caller: PageCaller, state: AccessState | None = None, cursor: Cursor = None
) -> Response:
    """List who asked for the files of the party's gated models."""
    results = access.list_requests(hub, caller, state, PAGE, cursor)
    more = next_of("/-/access", results, state=state)
    states = get_args(AccessState)
    return render(request, "access.html.jinja", requests=results.items, more=more, state=state, states=states)


@router.post("/-/access/{party}/{name}/{asker}", dependencies=FORM)
def decide_access(
    hub: HubDep,
    caller: PageCaller,
    party: str,
    name: str,
    asker: str,
    state: Text = "",
    answer: Text = "",
    days: Annotated[int | None, Form(ge=1, le=3660)] = None,
    back: Annotated[Literal["model"] | None, Form()] = None,
) -> Response:
    """Accept or refuse a request, and go back to where that was asked: the list, or the model's page."""
    access.decide(hub, caller, party, name, asker, read_form(Decision, state=state, answer=answer, days=days))
    return RedirectResponse(url(party, name) if back == "model" else "/-/access", status_code=303)


@router.get("/-/audit")
def list_audit(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    action: Annotated[str | None, Query(max_length=64)] = None,
    cursor: Cursor = None,
) -> Response:
    """List what the party did, and what was done to what is its own."""
    return _audit(hub, request, caller, action, cursor)


@router.get("/-/audit/verify")
def verify_audit(
    hub: HubDep, request: Request, caller: PageCaller, expect: Annotated[str, Query(max_length=1000)] = ""
) -> Response:
    """Check the whole log, and say what was found."""
    caller.require("auditor")
    noted = expect.strip()
    try:
        head = audit.verify_audit(hub, caller, noted or None)
    except SutureError as error:
        return _audit(hub, request, caller, None, None, expect=noted, problem=error)
    return _audit(hub, request, caller, None, None, expect=noted, head=head)


@router.get("/-/audit/export")
def export_audit(
    hub: HubDep, caller: PageCaller, action: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """Give all entries that the list shows, newest first, as JSON lines."""
    caller.require("auditor")

    def lines() -> Iterator[str]:
        cursor, more = None, True
        while more:
            results = audit.list_audit(hub, caller, action, PAGE, cursor)
            yield "".join(f"{entry.model_dump_json()}\n" for entry in results.items)
            cursor, more = results.next, results.next is not None

    headers = {**HEADERS, "Content-Disposition": 'attachment; filename="audit.ndjson"'}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


def _audit(
    hub: HubContext,
    request: Request,
    caller: Caller,
    action: str | None,
    cursor: str | None,
    *,
    expect: str = "",
    head: AuditHeadOut | None = None,
    problem: SutureError | None = None,
) -> Response:
    results = audit.list_audit(hub, caller, action, PAGE, cursor)
    return render(
        request,
        "audit.html.jinja",
        status_of(problem),
        entries=results.items,
        more=next_of("/-/audit", results, action=action),
        action=action,
        expect=expect,
        head=head,
        problem=problem,
    )


def _admin(
    hub: HubContext,
    request: Request,
    caller: Caller,
    party: str,
    problem: SutureError | None = None,
    secret: tuple[str, str, str] | None = None,
) -> Response:
    listed = parties.list_tokens(hub, caller, party, PAGE, None)
    return render(
        request,
        "admin.html.jinja",
        status_of(problem),
        party=parties.read_party(hub, caller, party),
        tokens=[token for token in listed.items if token.revoked_at is None],
        revoked=[token for token in listed.items if token.revoked_at is not None],
        complete=listed.next is None,
        people=people.list_people(hub, caller, party, PAGE, None).items if hub.settings.oidc_issuer else None,
        keys=keys.list_keys(hub, caller, party, PAGE, None).items,
        quota=membership.get_quota(hub, caller, party),
        own=party == caller.party,
        roles=ROLES if "operator" in caller.roles else [role for role in ROLES if role != "operator"],
        problem=problem,
        secret=secret,
    )


def other_parties(hub: HubContext, caller: Caller) -> list[str]:
    """Return the other parties for which who is signed in may act."""
    with hub.database.reading() as session:
        return [party for party in parties_of(session, caller) if party != caller.party]


def _rules(caller: Caller, party: str) -> bool:
    try:
        caller.require_rule_over(party)
    except SutureError:
        return False
    return True


def _back(party: str) -> Response:
    return RedirectResponse(f"/-/admin/{party}", status_code=303)
