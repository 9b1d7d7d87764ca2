"""`/v1/parties/{party}/keys`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Response

from suture_service.auth import CallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.keys import repository, service
from suture_service.keys.schemas import FINGERPRINT, KeyIn, KeyOut, TakenBack
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties.service import get_party
from suture_service.route import room
from suture_service.tables import PartyKey

router = room("/v1", tag="keys")

Fingerprint = Annotated[str, Path(description="The sha256 of the public key.", examples=[FINGERPRINT])]


@router.get("/parties/{party}/keys", responses=answers(404, 422))
def list_keys(hub: HubDep, caller: CallerDep, party: str, limit: Limit = 50, cursor: Cursor = None) -> Page[KeyOut]:
    """List a party's public keys, oldest first, revoked ones included."""
    after = decode(cursor, int)
    with hub.database.reading() as session:
        owner = get_party(session, party)
        rows = repository.list_keys(session, owner.id, int(after[0]) if after else None, limit)
        return page(rows, limit, _show, lambda key: (key.id,))


@router.post(
    "/parties/{party}/keys",
    status_code=201,
    responses={200: {"model": KeyOut, "description": "It is registered already."}, **answers(403, 409, 422)},
)
def register(hub: HubDep, caller: CallerDep, response: Response, party: str, body: KeyIn) -> KeyOut:
    """Register a public key of your party (role `admin`)."""
    with hub.database.writing() as session:
        key, new = service.register(session, caller, party, body, hub.now())
        response.status_code = 201 if new else 200
        return _show(key)


@router.post("/parties/{party}/keys/{fingerprint}/revoke", responses=answers(403, 404, 422))
def revoke(hub: HubDep, caller: CallerDep, party: str, fingerprint: Fingerprint, body: TakenBack) -> KeyOut:
    """Revoke a key of your party for good (role `admin`). What it signed, and all made of that, is flagged."""
    with hub.database.writing() as session:
        return _show(service.revoke(session, caller, party, fingerprint, body.reason, hub.now()))


def _show(key: PartyKey) -> KeyOut:
    return KeyOut(
        fingerprint=key.fingerprint,
        party=key.party.name,
        name=key.name,
        public_key=key.public_key,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
        revoked_reason=key.revoked_reason,
    )
