"""`suture hub party|site suspend|resume|rename|remove` and `suture hub party quota`."""

from __future__ import annotations

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
from suture_service.commands.options import PartyArgument, YesOption
from suture_service.membership.schemas import Affected, QuotaIn, QuotaOut
from suture_service.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from suture_service.hub import HubContext
    from suture_service.membership.service import Change

SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="the site's name within the party")]
NewArgument = Annotated[str, typer.Argument(metavar="NEW", help="the new name")]


@prints(Affected)
def suspend_party(party: PartyArgument, yes: YesOption = False, format: FormatOption = Format.text) -> None:
    """Let none of a party's tokens open anything, until it is resumed. Says first what becomes of what it has.

    \b
    Example:
      suture hub party suspend north
    """
    from suture_service.membership import service

    _act("suspend", party, None, yes, format, lambda hub: service.suspend_party(hub, party))


@prints(Affected)
def resume_party(party: PartyArgument, format: FormatOption = Format.text) -> None:
    """Let a suspended party's tokens, sites and people in again.

    \b
    Example:
      suture hub party resume north
    """
    from suture_service.membership import service

    _act("resume", party, None, True, format, lambda hub: service.resume_party(hub, party))


@prints(Affected)
def rename_party(
    party: PartyArgument, new: NewArgument, yes: YesOption = False, format: FormatOption = Format.text
) -> None:
    """Call a party otherwise. Says first what becomes of what it has: signatures hold for the old name alone.

    \b
    Example:
      suture hub party rename north north-clinic
    """
    from suture_service.membership import service

    _act("rename", party, None, yes, format, lambda hub: service.rename_party(hub, party, new))


@prints(Affected)
def remove_party(party: PartyArgument, yes: YesOption = False, format: FormatOption = Format.text) -> None:
    """Let a party go for good, with its tokens, sites, people and models. Says first what becomes of what it has.

    Broken off, the same command finishes it.

    \b
    Example:
      suture hub party remove north
    """
    from suture_service.membership import service

    _act("remove", party, None, yes, format, lambda hub: service.remove_party(hub, party))


@prints(Affected)
def suspend_site(
    party: PartyArgument, site: SiteArgument, yes: YesOption = False, format: FormatOption = Format.text
) -> None:
    """Let a site in no more, until it is resumed. What it works at is given back.

    \b
    Example:
      suture hub site suspend north main
    """
    from suture_service.membership import service

    _act("suspend", party, site, yes, format, lambda hub: service.suspend_site(hub, party, site))


@prints(Affected)
def resume_site(party: PartyArgument, site: SiteArgument, format: FormatOption = Format.text) -> None:
    """Let a suspended site in again.

    \b
    Example:
      suture hub site resume north main
    """
    from suture_service.membership import service

    _act("resume", party, site, True, format, lambda hub: service.resume_site(hub, party, site))


@prints(Affected)
def rename_site(
    party: PartyArgument,
    site: SiteArgument,
    new: NewArgument,
    yes: YesOption = False,
    format: FormatOption = Format.text,
) -> None:
    """Call a site otherwise. Its token goes on working.

    \b
    Example:
      suture hub site rename north main radiology
    """
    from suture_service.membership import service

    _act("rename", party, site, yes, format, lambda hub: service.rename_site(hub, party, site, new))


@prints(Affected)
def remove_site(
    party: PartyArgument, site: SiteArgument, yes: YesOption = False, format: FormatOption = Format.text
) -> None:
    """Let a site go: its token ends for good. What it works at is given back.

    \b
    Example:
      suture hub site remove north main
    """
    from suture_service.membership import service

    _act("remove", party, site, yes, format, lambda hub: service.remove_site(hub, party, site))


@prints(list[QuotaOut])
def quota(
    party: Annotated[str | None, typer.Argument(metavar="PARTY", help="the party's name; without: all of them")] = None,
    gib: Annotated[float | None, typer.Option(min=0, max=2**20, help="what all its files may take, in GiB")] = None,
    jobs: Annotated[int | None, typer.Option(min=0, max=1_000_000, help="how many of its jobs may run at once")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="back to the hub's own limits")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Show what parties may fill and what they do, and set it for one. What a party holds already stays.

    \b
    Examples:
      suture hub party quota
      suture hub party quota north --gib 200 --jobs 5
      suture hub party quota north --reset
    """
    from suture_service import operate
    from suture_service.membership import service
    from suture_service.parties import repository
    from suture_service.parties.service import get_party

    settings = read_settings()
    changes = gib is not None or jobs is not None or reset
    if changes and party is None:
        raise SutureError("quota.party", "say whose quota it is", where="PARTY", hint="suture hub party quota north …")
    if reset and (gib is not None or jobs is not None):
        raise SutureError("quota.reset", "either a limit or none", where="--reset")
    if changes and party is not None:
        with operate.writing(settings) as session:
            owner = get_party(session, party)
            max_bytes = owner.max_bytes if gib is None else int(gib * 2**30)
            wanted = QuotaIn(max_bytes=max_bytes, max_jobs=owner.max_jobs if jobs is None else jobs)
            service.set_quota(session, owner, QuotaIn(max_bytes=None, max_jobs=None) if reset else wanted)
    with operate.reading(settings) as session:
        owners = [get_party(session, party)] if party is not None else repository.list_parties(session, None, 100_000)
        quotas = [service.quota_of(session, owner, settings) for owner in owners]
    if format is Format.json:
        print_json(quotas)
        return
    rows = [
        (
            row.party,
            f"{row.bytes / 2**30:.1f} of {row.max_bytes / 2**30:g} GiB",
            f"{row.jobs} of {row.max_jobs}",
            "its own" if row.own_limits else "the hub's",
        )
        for row in quotas
    ]
    print_table(("party", "files", "jobs", "limits"), rows, empty="no parties")


def _act(
    change: Change,
    party: str,
    site: str | None,
    yes: bool,
    format: Format,
    act: Callable[[HubContext], Affected],
) -> None:
    """Say what becomes of what a party or a site has, ask, and do it."""
    from suture_service import operate
    from suture_service.membership import service
    from suture_service.parties.service import get_party

    name = party if site is None else f"{party}/{site}"
    with operate.running(read_settings()) as hub:
        with hub.database.reading() as session:
            owner = get_party(session, party)
            row = service.get_site(session, owner, site) if site is not None else None
            planned = service.affected(session, owner, change, hub.now(), row)
        _announce(name, planned)
        confirm(f"{change} {name}?", yes=yes, what=f"{name} is as it was")
        done = act(hub)
    if format is Format.json:
        print_json(done)
    else:
        console.print(f"{name}: {_DONE[change]}")


#: What a party has, when it has one of it.
_SINGULAR = {
    "models": "model",
    "jobs": "job",
    "tasks": "task",
    "sites": "site",
    "tokens": "token",
    "people": "person",
    "keys": "key",
}
_DONE = {"suspend": "suspended", "resume": "resumed", "rename": "renamed", "remove": "removed"}


def _announce(name: str, planned: Affected) -> None:
    counts = {
        key: value
        for key, value in planned.model_dump().items()
        if isinstance(value, int) and value and (planned.site is None or key != "sites")
    }
    held = [f"{value} {_SINGULAR.get(key, key) if value == 1 else key}" for key, value in counts.items()]
    notes.print(f"{name} has {', '.join(held) or 'nothing'}")
    for line in planned.consequences:
        notes.print(f"  - {line}")
