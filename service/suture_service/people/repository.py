"""All SQL about people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session, joinedload

from suture_service.identity import Identity
from suture_service.tables import Person, Token


def find_person(session: Session, party_id: int, name: str) -> Person | None:
    """Return a party's person, and keep logins and other changes of this person waiting until the end."""
    statement = select(Person).where(Person.party_id == party_id, Person.name == name).with_for_update()
    return session.scalars(statement).one_or_none()


def is_known(session: Session, party_id: int, issuer: str, subject: str | None, email: str | None) -> bool:
    """Whether a party has somebody of this subject or e-mail."""
    same = Person.subject == subject if subject is not None else Person.email == email
    return (
        session.scalar(select(Person.id).where(Person.party_id == party_id, Person.issuer == issuer, same)) is not None
    )


def list_people(session: Session, party_id: int, after: str | None, limit: int) -> Sequence[Person]:
    """Return a party's people by name; one more than `limit`."""
    statement = select(Person).where(Person.party_id == party_id).order_by(Person.name).limit(limit + 1)
    if after is not None:
        statement = statement.where(Person.name > after)
    return session.scalars(statement).all()


def find_identity(session: Session, identity: Identity) -> Sequence[Person]:
    """Return whom this may be, at any party; their removal waits until the end."""
    known = Person.subject == identity.subject
    if identity.email is not None:
        known = or_(known, and_(Person.subject.is_(None), Person.email == identity.email))
    statement = select(Person).where(Person.issuer == identity.issuer, known).order_by(Person.id).with_for_update()
    return session.scalars(statement).all()


def is_used(session: Session, proof: str) -> bool:
    """Whether somebody has signed in with this ID token already."""
    return session.scalar(select(Token.id).where(Token.login_sha256 == proof)) is not None


def list_live_tokens(session: Session, person_id: int, now: datetime) -> Sequence[Token]:
    """Return a person's tokens that still open something."""
    statement = (
        select(Token)
        .where(Token.person_id == person_id, Token.revoked_at.is_(None), Token.expires_at > now)
        .options(joinedload(Token.party))
    )
    return session.scalars(statement).all()


def forget(session: Session, person: Person) -> None:
    """Delete a person; the tokens stay, for the records, under their name."""
    session.execute(update(Token).where(Token.person_id == person.id).values(person_id=None))
    session.delete(person)
