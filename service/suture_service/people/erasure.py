"""What the hub's data hold about a person, and taking it out while the audit log stays verifiable."""

from __future__ import annotations

from sqlalchemy.orm import Session

from suture_service.audit.chain import OPERATOR, REDACT, record, redact
from suture_service.database import Database
from suture_service.errors import NotFound
from suture_service.hub import utc_now
from suture_service.parties.service import end, get_party
from suture_service.people import repository
from suture_service.people.schemas import PersonData, PersonEntry, PersonOut, PersonToken
from suture_service.tables import Party

#: In place of a name.
ERASED = "erased"


def data_of(session: Session, party: Party, name: str) -> PersonData:
    """Return what is held about a person of a party, by the name that tokens and audit log have; raises `NotFound`."""
    person = repository.find_person(session, party.id, name)
    tokens = repository.tokens_of(session, party.id, name)
    entries = repository.entries_about(session, party.name, name, [token.id for token in tokens])
    if person is None and not tokens and not entries:
        raise NotFound(f"nothing is held about a person {name!r} of {party.name}")
    return PersonData(
        party=party.name,
        name=name,
        registered=PersonOut.model_validate(person, from_attributes=True) if person is not None else None,
        tokens=[PersonToken.model_validate(token, from_attributes=True) for token in tokens],
        entries=[PersonEntry.model_validate(entry, from_attributes=True) for entry in entries],
    )


def erase(database: Database, party: str, name: str, *, by: str = OPERATOR) -> PersonData:
    """Delete what is held about a person, and return what that was; broken off, it can be repeated.

    Tokens end and lose the name. Entries of the audit log lose name, address and token; their digests stay, and a new
    entry names them, so that the chain is verified as before.
    """
    with database.writing() as session:
        owner = get_party(session, party)
        held = data_of(session, owner, name)
        person = repository.find_person(session, owner.id, name)
        tokens = repository.tokens_of(session, owner.id, name)
        entries = repository.entries_about(session, party, name, [token.id for token in tokens])
        for token in tokens:
            end(session, token, utc_now(), by=by)
        if person is not None:
            repository.forget(session, person)
        named = {str(entry.id): entry.digest for entry in entries}
        record(session, by, REDACT, party, owner=party, entries=named)
    with database.writing() as session:
        rows = repository.entries_by_id(session, named)
        redact(session, rows, named, person=f"{party}/{name}", name=f"{party}/{ERASED}")
        # Last: by their name the tokens are found again where this was broken off.
        for token in repository.tokens_of(session, get_party(session, party).id, name):
            token.name = None
    return held
