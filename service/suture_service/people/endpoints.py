"""`/v1/login` and `/v1/parties/{party}/people`: there only where an identity provider is set."""

from __future__ import annotations

from fastapi import Response

from suture_service.auth import CallerDep, note_wrong_token
from suture_service.errors import Forbidden, Malformed, answers
from suture_service.hub import SIGN_IN_TURN, HubDep
from suture_service.origin import Origin, origin
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties.service import check_grant, get_party
from suture_service.people import repository, service
from suture_service.people.schemas import LoggedIn, LoginIn, LoginWith, PersonIn, PersonOut, RolesIn
from suture_service.route import room
from suture_service.tables import Person

router = room("/v1", tag="people")


@router.get("/login")
def login_with(hub: HubDep) -> LoginWith:
    """Say at which identity provider people sign in."""
    return LoginWith(issuer=hub.issuer.url, client_id=hub.issuer.client_id)


@router.post("/login", status_code=201, responses=answers(400, 403, 409, 422, 429), dependencies=[SIGN_IN_TURN])
def login(hub: HubDep, body: LoginIn, response: Response) -> LoggedIn:
    """Give a person's ID token, get a token of the person's party with the person's roles, for twelve hours."""
    hub.limits.check_address((origin.get() or Origin()).address or "")
    try:
        identity = hub.issuer.verify(body.id_token, body.nonce)
    except (Forbidden, Malformed):
        note_wrong_token(hub)
        raise
    with hub.database.writing() as session:
        token, secret = service.login(session, identity, body.party, hub.now())
        response.headers["Cache-Control"] = "no-store"
        assert token.expires_at is not None
        return LoggedIn(
            id=token.id, token=secret, party=token.party.name, roles=token.roles, expires_at=token.expires_at
        )


@router.post("/parties/{party}/people", status_code=201, responses=answers(403, 404, 409, 422))
def add_person(hub: HubDep, caller: CallerDep, party: str, body: PersonIn) -> PersonOut:
    """Register a person who may sign in for a party (role `admin` of the party, or `operator`)."""
    with hub.database.writing() as session:
        check_grant(caller, party, body.roles)
        owner = get_party(session, party)
        return _show(service.add_person(session, owner, body, hub.issuer.url, hub.now(), by=caller.name))


@router.get("/parties/{party}/people", responses=answers(403, 404, 422))
def list_people(
    hub: HubDep, caller: CallerDep, party: str, limit: Limit = 50, cursor: Cursor = None
) -> Page[PersonOut]:
    """List who may sign in for a party (role `admin` of the party, or `operator`)."""
    with hub.database.reading() as session:
        caller.require_rule_over(party)
        after = decode(cursor, str)
        owner = get_party(session, party)
        rows = repository.list_people(session, owner.id, str(after[0]) if after else None, limit)
        return page(rows, limit, _show, lambda person: (person.name,))


@router.patch("/parties/{party}/people/{person}", responses=answers(403, 404, 422))
def change_roles(hub: HubDep, caller: CallerDep, party: str, person: str, body: RolesIn) -> PersonOut:
    """Give a person other roles; their tokens end at once (role `admin` of the party, or `operator`)."""
    with hub.database.writing() as session:
        check_grant(caller, party, body.roles)
        owner = get_party(session, party)
        registered = service.get_person(session, owner, person, caller)
        service.change_roles(session, owner, registered, body.roles, hub.now(), by=caller.name)
        return _show(registered)


@router.delete("/parties/{party}/people/{person}", status_code=204, responses=answers(403, 404, 422))
def remove(hub: HubDep, caller: CallerDep, party: str, person: str) -> Response:
    """Remove a person; their tokens end at once (role `admin` of the party, or `operator`)."""
    with hub.database.writing() as session:
        caller.require_rule_over(party)
        owner = get_party(session, party)
        registered = service.get_person(session, owner, person, caller)
        service.remove(session, owner, registered, hub.now(), by=caller.name)
        return Response(status_code=204)


def _show(person: Person) -> PersonOut:
    return PersonOut(
        name=person.name,
        issuer=person.issuer,
        subject=person.subject,
        email=person.email,
        roles=person.roles,
        created_at=person.created_at,
        created_by=person.created_by,
    )
