"""The rules of parties' public keys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from suture_contract.model.signature import read_public_key
from suture_service.audit.chain import record
from suture_service.auth import Caller
from suture_service.errors import Conflict, NotFound
from suture_service.keys import repository
from suture_service.keys.schemas import KeyIn
from suture_service.parties.repository import lock_party
from suture_service.tables import PartyKey


def register(session: Session, caller: Caller, party: str, asked: KeyIn, now: datetime) -> tuple[PartyKey, bool]:
    """Register a party's public key (role `admin`); return it and whether it is new. A revoked one stays revoked."""
    caller.require_own(party, "admin")
    public = read_public_key(asked.public_key, asked.name, where="public_key")
    lock_party(session, caller.party_id)
    known = repository.find_key(session, caller.party_id, public.fingerprint)
    if known is not None:
        if known.revoked_at is not None:
            raise Conflict("key.revoked", "this key is revoked", where=known.name, hint="make a new one")
        return known, False
    key = PartyKey(
        party_id=caller.party_id,
        fingerprint=public.fingerprint,
        name=asked.name,
        public_key=public.pem,
        created_at=now,
        created_by=caller.name,
    )
    session.add(key)
    session.flush()
    record(session, caller.name, "key.register", f"{party}/{asked.name}", owner=party, fingerprint=key.fingerprint)
    return key, True


def revoke(session: Session, caller: Caller, party: str, fingerprint: str, reason: str, now: datetime) -> PartyKey:
    """Revoke an own key (role `admin`): what it signed, and all that was made of it, is flagged from now on."""
    caller.require_own(party, "admin")
    lock_party(session, caller.party_id)
    key = repository.find_key(session, caller.party_id, fingerprint)
    if key is None:
        raise NotFound("your party has no such key", where=fingerprint[:64])
    if key.revoked_at is None:
        key.revoked_at, key.revoked_by, key.revoked_reason = now, caller.name, reason
        record(session, caller.name, "key.revoke", f"{party}/{key.name}", owner=party, fingerprint=key.fingerprint)
    return key
