"""All SQL about parties and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from suture_service.tables import Party, Token


def find_party(session: Session, name: str) -> Party | None:
    """Return the party of this name."""
    return session.scalars(select(Party).where(Party.name == name)).one_or_none()


def party_names(session: Session) -> Sequence[str]:
    """Return the names of parties, at most a thousand."""
    return session.scalars(select(Party.name).order_by(Party.name).limit(1000)).all()


def list_parties(session: Session, after: str | None, limit: int) -> Sequence[Party]:
    """Return parties by name, with their sites; one more than `limit`."""
    statement = select(Party).options(selectinload(Party.sites)).order_by(Party.name).limit(limit + 1)
    if after is not None:
        statement = statement.where(Party.name > after)
    return session.scalars(statement).all()


def get_token(session: Session, token_id: str) -> Token | None:
    """Return a token by its id, revoked or not."""
    return session.get(Token, token_id, options=[joinedload(Token.party), joinedload(Token.site)])


def list_tokens(session: Session, party_id: int, after: str | None, limit: int) -> Sequence[Token]:
    """Return a party's tokens and those of its sites, by id; one more than `limit`."""
    statement = (
        select(Token)
        .where(Token.party_id == party_id)
        .options(joinedload(Token.site))
        .order_by(Token.id)
        .limit(limit + 1)
    )
    if after is not None:
        statement = statement.where(Token.id > after)
    return session.scalars(statement).all()


def revoke(session: Session, token_id: str, now: datetime) -> None:
    """End a token; the first time counts."""
    session.execute(update(Token).where(Token.id == token_id, Token.revoked_at.is_(None)).values(revoked_at=now))


def lock_party(session: Session, party_id: int) -> Party:
    """Return a party and let nobody else publish under it until this transaction ends."""
    return session.scalars(select(Party).where(Party.id == party_id).with_for_update()).one()
