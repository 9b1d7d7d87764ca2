"""All SQL about parties' public keys."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from suture_service.tables import PartyKey


def find_key(session: Session, party_id: int, fingerprint: str) -> PartyKey | None:
    """Return a party's key, revoked or not."""
    statement = select(PartyKey).where(PartyKey.party_id == party_id, PartyKey.fingerprint == fingerprint)
    return session.scalars(statement.options(joinedload(PartyKey.party))).one_or_none()


def list_keys(session: Session, party_id: int, after: int | None, limit: int) -> Sequence[PartyKey]:
    """Return a party's keys, oldest first; one more than `limit`."""
    statement = select(PartyKey).where(PartyKey.party_id == party_id).order_by(PartyKey.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(PartyKey.id > after)
    return session.scalars(statement.options(joinedload(PartyKey.party))).all()
