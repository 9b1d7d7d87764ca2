"""All SQL about people."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session, aliased, joinedload

from suture_service.database import portions
from suture_service.identity import Identity
from suture_service.tables import AuditEntry, Party, Person, Token
from suture_service.tokens import is_live


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


def parties_of(session: Session, token_id: str) -> Sequence[str]:
    """Return the names of the parties that know whom a login gave this token, and that are let in."""
    same = aliased(Person)
    statement = (
        select(Party.name)
        .join(same, same.party_id == Party.id)
        .join(Person, and_(Person.issuer == same.issuer, Person.subject == same.subject))
        .join(Token, Token.person_id == Person.id)
        .where(Token.id == token_id, Party.suspended_at.is_(None))
        .order_by(Party.name)
    )
    return session.scalars(statement).all()


def is_used(session: Session, proof: str) -> bool:
    """Whether somebody has signed in with this ID token already."""
    return session.scalar(select(Token.id).where(Token.login_sha256 == proof)) is not None


def list_live_tokens(session: Session, person_id: int, now: datetime) -> Sequence[Token]:
    """Return a person's tokens that still open something."""
    statement = select(Token).where(Token.person_id == person_id, is_live(now)).options(joinedload(Token.party))
    return session.scalars(statement).all()


def tokens_of(session: Session, party_id: int, name: str) -> Sequence[Token]:
    """Return the tokens that logins under a name gave, ended ones and those of a person who was removed included."""
    of_person = select(Person.id).where(Person.party_id == party_id, Person.name == name)
    by_login = and_(Token.login_sha256.is_not(None), Token.name == name)
    statement = select(Token).where(Token.party_id == party_id, or_(Token.person_id.in_(of_person), by_login))
    return session.scalars(statement.options(joinedload(Token.party)).order_by(Token.created_at)).all()


def entries_about(session: Session, party: str, name: str, token_ids: Collection[str]) -> Sequence[AuditEntry]:
    """Return the entries of the audit log that name a person, or were written for one of these tokens."""
    # A model or a site may be called as a person is.
    registered = and_(AuditEntry.what == f"{party}/{name}", AuditEntry.action.startswith("person."))
    by_token = or_(AuditEntry.what.in_(token_ids), AuditEntry.token_id.in_(token_ids))
    statement = select(AuditEntry).where(or_(registered, by_token), AuditEntry.redacted_by.is_(None))
    return session.scalars(statement.order_by(AuditEntry.id)).all()


def entries_by_id(session: Session, ids: Iterable[str]) -> Sequence[AuditEntry]:
    """Return entries of the audit log by their numbers."""
    wanted = sorted(int(number) for number in ids)
    rows: list[AuditEntry] = []
    for portion in portions(wanted):
        rows += session.scalars(select(AuditEntry).where(AuditEntry.id.in_(portion)))
    return rows


def forget(session: Session, person: Person) -> None:
    """Delete a person; the tokens stay, for the records, under their name."""
    session.execute(update(Token).where(Token.person_id == person.id).values(person_id=None))
    session.delete(person)
