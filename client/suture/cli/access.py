"""Commands about gated models: ask for their files, and decide about your own."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from suture.cli.models import RepoArgument
from suture.hub import Hub
from suture.responses import AccessRequest
from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints

PartyArgument = Annotated[str, typer.Argument(metavar="PARTY", help="who asks")]
AnswerOption = Annotated[str, typer.Option(help="what the asker reads")]


@prints(AccessRequest)
def request(
    repo: RepoArgument,
    reason: Annotated[str, typer.Option(help="why; its owner reads this", prompt="Why (its owner reads this)")],
    format: FormatOption = Format.text,
) -> None:
    """Ask for the files of a gated model, for your party. Asking again shows how it stands.

    \b
    Example:
      suture access request north/polyps --reason "to stitch it with our own"
    """
    with Hub() as hub:
        asked = hub.request_access(repo, reason)
    if format is Format.json:
        print_json(asked)
        return
    console.print(asked.state)
    if asked.state == "pending":
        notes.print("its owner decides; ask again to see what became of it")
    elif asked.answer:
        notes.print(f"its owner says: {asked.answer}", markup=False)


@prints(list[AccessRequest])
def list_requests(
    state: Annotated[str | None, typer.Option(help="pending, accepted or refused; all by default")] = None,
    format: FormatOption = Format.text,
) -> None:
    """List who asked for your party's gated models (role steward or admin).

    \b
    Example:
      suture access list --state pending
    """
    with Hub() as hub:
        requests = hub.access_requests(cast("Literal['pending', 'accepted', 'refused'] | None", state))
    if format is Format.json:
        print_json(requests)
        return
    rows = [
        (asked.model, asked.party, _state(asked), f"{asked.requested_at:%Y-%m-%d}", asked.reason) for asked in requests
    ]
    print_table(("model", "who asks", "state", "since", "why"), rows, empty="nobody has asked", prose=("why",))


@prints(AccessRequest)
def accept(
    repo: RepoArgument,
    party: PartyArgument,
    days: Annotated[int | None, typer.Option(min=1, max=3660, help="for how long; without: until refused")] = None,
    answer: AnswerOption = "",
    format: FormatOption = Format.text,
) -> None:
    """Give a party the files of a gated model (role steward or admin).

    \b
    Example:
      suture access accept north/polyps south --days 365
    """
    with Hub() as hub:
        _show(hub.decide_access(repo, party, accept=True, answer=answer, days=days), format)


@prints(AccessRequest)
def refuse(
    repo: RepoArgument, party: PartyArgument, answer: AnswerOption = "", format: FormatOption = Format.text
) -> None:
    """Refuse a party's request, or take back what was granted (role steward or admin).

    Files that were downloaded meanwhile cannot be taken back.

    \b
    Example:
      suture access refuse north/polyps south --answer "the study has ended"
    """
    with Hub() as hub:
        _show(hub.decide_access(repo, party, accept=False, answer=answer), format)


def _show(asked: AccessRequest, format: Format) -> None:
    if format is Format.json:
        print_json(asked)
    else:
        console.print(_state(asked))


def _state(asked: AccessRequest) -> str:
    if asked.state == "accepted" and asked.expires_at is not None:
        return f"accepted until {asked.expires_at:%Y-%m-%d}"
    return asked.state
