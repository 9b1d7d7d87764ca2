"""`suture hub person`: who may sign in for a party with the organisation's identity provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from suture_contract.console.terminal import (
    Format,
    FormatOption,
    confirm,
    console,
    notes,
    print_json,
    print_table,
    prints,
)
from suture_contract.errors import SutureError
from suture_contract.naming import problems_of
from suture_service.commands.options import PartyArgument, RoleOption, YesOption
from suture_service.people.schemas import PersonData, PersonIn, PersonOut
from suture_service.settings import read_settings

if TYPE_CHECKING:
    from suture_service.auth import Role

PersonArgument = Annotated[str, typer.Argument(metavar="NAME", help="how tokens and the audit log call this person")]


def add(
    party: PartyArgument,
    name: PersonArgument,
    subject: Annotated[str | None, typer.Option(help="the provider's `sub` of this person")] = None,
    email: Annotated[str | None, typer.Option(help="or an e-mail that the provider has verified")] = None,
    role: RoleOption = None,
) -> None:
    """Let a person sign in for a party: by the provider's subject, or by a verified e-mail.

    The e-mail counts until the first login, which notes the subject: an address may be given to somebody else one day.

    \b
    Examples:
      suture hub person add north a.berg --email a.berg@north.example --role publisher --role requester
      suture hub person add north a.berg --subject 248289761001
    """
    from pydantic import ValidationError

    settings, roles = read_settings(), _roles(role)
    from suture_service.hub import utc_now
    from suture_service.operate import writing
    from suture_service.parties.service import get_party
    from suture_service.people import service

    if not settings.oidc_issuer:
        raise SutureError(
            "hub.settings",
            "no identity provider is set",
            where="SUTURE_HUB_OIDC_ISSUER",
            hint="set it and SUTURE_HUB_OIDC_CLIENT_ID as they are set for the hub",
        )
    try:
        wanted = PersonIn(name=name, subject=subject, email=email, roles=roles)
    except ValidationError as error:
        first = problems_of(error.errors(include_url=False), PersonIn)[0]
        where = f"--{first.field}" if first.field else "--subject, --email"
        raise SutureError("person.invalid", first.message, where=where) from None
    with writing(settings) as session:
        service.add_person(session, get_party(session, party), wanted, settings.oidc_issuer, utc_now())
    notes.print(f"added {name}; next, for this person:  suture login --oidc")


@prints(list[PersonOut])
def list_people(party: PartyArgument, format: FormatOption = Format.text) -> None:
    """List who may sign in for a party.

    \b
    Example:
      suture hub person list north
    """
    settings = read_settings()
    from suture_service.operate import reading
    from suture_service.parties.service import get_party
    from suture_service.people import repository

    with reading(settings) as session:
        rows = repository.list_people(session, get_party(session, party).id, None, 100_000)
        people = [PersonOut.model_validate(row, from_attributes=True) for row in rows]
    if format is Format.json:
        print_json(people)
        return
    cells = [
        (person.name, person.email or "", person.subject or "at the first login", ", ".join(person.roles) or "reader")
        for person in people
    ]
    empty = f"nobody signs in for {party}; add somebody with `suture hub person add {party} NAME`"
    print_table(("name", "e-mail", "subject", "roles"), cells, empty=empty, prose=("roles",))


def change_roles(party: PartyArgument, name: PersonArgument, role: RoleOption = None) -> None:
    """Give a person these roles and no others. The tokens of the person's logins end at once.

    \b
    Example:
      suture hub person roles north a.berg --role requester
    """
    settings, roles = read_settings(), _roles(role)
    from suture_service.hub import utc_now
    from suture_service.operate import writing
    from suture_service.parties.service import get_party
    from suture_service.people import service

    with writing(settings) as session:
        owner = get_party(session, party)
        service.change_roles(session, owner, service.get_person(session, owner, name), roles, utc_now())
    notes.print(f"{name}: {', '.join(roles) or 'reader'}")


def remove(party: PartyArgument, name: PersonArgument) -> None:
    """Remove a person. The tokens of the person's logins end at once.

    Tokens that an admin made with `suture hub token create` or over the API stay: see `suture hub token list`.

    \b
    Example:
      suture hub person remove north a.berg
    """
    settings = read_settings()
    from suture_service.hub import utc_now
    from suture_service.operate import writing
    from suture_service.parties.service import get_party
    from suture_service.people import service

    with writing(settings) as session:
        owner = get_party(session, party)
        service.remove(session, owner, service.get_person(session, owner, name), utc_now())
    notes.print(f"removed {name}")


@prints(PersonData)
def show(party: PartyArgument, name: PersonArgument, format: FormatOption = Format.text) -> None:
    """Show what the hub's data hold about a person: the registration, tokens of logins, and entries of the audit log.

    Texts that people wrote, such as the reason of a request or a commit's message, are not searched.

    \b
    Example:
      suture hub person show north a.berg --format json
    """
    settings = read_settings()
    from suture_service.operate import reading
    from suture_service.parties.service import get_party
    from suture_service.people.erasure import data_of

    with reading(settings) as session:
        held = data_of(session, get_party(session, party), name)
    if format is Format.json:
        print_json(held)
        return
    person = held.registered
    if person is not None:
        known = person.email or person.subject or ""
        roles = ", ".join(person.roles) or "reader"
        console.print(f"registered since {person.created_at:%Y-%m-%d}: {known}, {roles}")
    else:
        console.print("not registered any more")
    console.print(f"{len(held.tokens)} tokens of logins, {len(held.entries)} entries of the audit log")
    rows = [
        (str(entry.id), f"{entry.at:%Y-%m-%d %H:%M}", entry.action, entry.what, entry.address or "")
        for entry in held.entries
    ]
    print_table(("entry", "when (UTC)", "did", "what", "from"), rows, empty="the audit log does not name this person")


@prints(PersonData)
def erase(
    party: PartyArgument,
    name: PersonArgument,
    yes: YesOption = False,
    format: FormatOption = Format.text,
) -> None:
    """Delete what the hub's data hold about a person, as `show` shows it, and print what that was.

    The registration goes. Tokens of logins end, and lose the name. Entries of the audit log lose name, address and
    token; when, what and for which party stay. `suture hub audit verify` goes on: the digests stay, and a new entry
    names them.
    Backups that are older keep it.

    \b
    Example:
      suture hub person erase north a.berg
    """
    settings = read_settings()
    from suture_service.operate import reading, running
    from suture_service.parties.service import get_party
    from suture_service.people.erasure import data_of
    from suture_service.people.erasure import erase as erase_person

    with reading(settings) as session:
        held = data_of(session, get_party(session, party), name)
    notes.print(f"{len(held.tokens)} tokens end, {len(held.entries)} entries of the audit log are redacted")
    confirm(f"erase {name} of {party}?", yes=yes, what=f"{name} is as before")
    with running(settings) as hub:
        gone = erase_person(hub.database, party, name)
    if format is Format.json:
        print_json(gone)
    else:
        notes.print(f"erased {name}; next:  suture hub audit verify, and note what it prints")


def _roles(names: Sequence[str] | None) -> list[Role]:
    from suture_service.operate import checked_roles

    return checked_roles(names or (), "--role")
