"""All SQL about parties' public keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from suture_service.tables import PartyKey, Revision


def find_key(session: Session, party_id: int, fingerprint: str) -> PartyKey | None:
    """Return a party's key, revoked or not."""
    statement = select(PartyKey).where(PartyKey.party_id == party_id, PartyKey.fingerprint == fingerprint)
    return session.scalars(statement.options(joinedload(PartyKey.party))).one_or_none()


def newest_signature(session: Session, model_id: int) -> datetime | None:
    """Return when the revision of a model that was signed last was signed; None where no signature says when."""
    statement = select(func.max(Revision.signed_at)).where(Revision.model_id == model_id)
    return session.scalars(statement).one_or_none()


def list_keys(session: Session, party_id: int, after: int | None, limit: int) -> Sequence[PartyKey]:
    """Return a party's keys, oldest first; one more than `limit`."""
    statement = select(PartyKey).where(PartyKey.party_id == party_id).order_by(PartyKey.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(PartyKey.id > after)
    return session.scalars(statement.options(joinedload(PartyKey.party))).all()
