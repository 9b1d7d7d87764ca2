"""All SQL about parties and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session, joinedload, selectinload

from suture_service.tables import FormerName, Party, Token

#: "names" in ASCII: the number on which those wait for each other who give parties their names.
_NAMES = 0x6E616D6573


def find_party(session: Session, name: str) -> Party | None:
    """Return the party of this name, unless it was removed."""
    return session.scalars(select(Party).where(Party.name == name, Party.removed_at.is_(None))).one_or_none()


def ever_named(session: Session, name: str) -> Party | None:
    """Return the party that has, or had, this name, removed or not: nobody else may have it."""
    named = session.scalars(select(Party).where(Party.name == name)).one_or_none()
    if named is None:
        named = session.scalars(select(Party).join(FormerName).where(FormerName.name == name)).one_or_none()
    return named


def party_names(session: Session) -> Sequence[str]:
    """Return the names of parties, at most a thousand."""
    there = select(Party.name).where(Party.removed_at.is_(None))
    return session.scalars(there.order_by(Party.name).limit(1000)).all()


def list_parties(session: Session, after: str | None, limit: int) -> Sequence[Party]:
    """Return parties by name, with their sites; one more than `limit`."""
    there = select(Party).where(Party.removed_at.is_(None))
    statement = there.options(selectinload(Party.sites)).order_by(Party.name).limit(limit + 1)
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
    """Return a party and let nobody else add to what it has until this transaction ends.

    What is looked up only afterwards cannot be added meanwhile. (On SQLite a writing transaction has the database.)
    Who only names the party, as one of its readers say, does not wait: two that name each other would for ever.
    """
    return session.scalars(select(Party).where(Party.id == party_id).with_for_update(key_share=True)).one()


def lock_names(session: Session) -> None:
    """Let nobody else give a party a name until this transaction ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:names)"), {"names": _NAMES})
