"""The commands that keep a party's tokens: login and hubs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from suture import credentials
from suture.cli.documents import Login, SignedIn
from suture.device_login import Code, sign_in
from suture.errors import NotFound
from suture.http import Connection, check_url
from suture.hub import Hub
from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.errors import SutureError

#: In seconds: a clock that is off by more is worth a word.
_FAR_OFF = 86400.0


@prints(SignedIn)
def login(
    hub: Annotated[str | None, typer.Option(metavar="URL", envvar="SUTURE_HUB", help="the hub's address")] = None,
    token_file: Annotated[Path | None, typer.Option(help="a file that holds the token; else it is asked for")] = None,
    oidc: Annotated[bool, typer.Option("--oidc", help="sign in with your organisation's identity provider")] = False,
    party: Annotated[str | None, typer.Option(help="with --oidc: your party, if several know you")] = None,
    profile: Annotated[
        str, typer.Option(metavar="NAME", envvar="SUTURE_PROFILE", help="the name to keep it under, for several hubs")
    ] = credentials.DEFAULT,
    forget: Annotated[bool, typer.Option("--forget", help="delete the stored token instead")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Keep a hub's address and your token.

    They are checked at the hub and stored for later commands, readable by you alone. The token is asked for, read
    from --token-file, or taken from standard input: never from the command line, where other users of this machine
    could see it. With --oidc there is no token to copy: you sign in at your organisation's identity provider in a
    browser, on any device, and what is stored is valid for twelve hours.

    For a second hub, or as a second party, name a profile: `suture --hub NAME …` and SUTURE_PROFILE use it then.

    \b
    Examples:
      suture login --hub https://hub.example
      suture login --hub https://other.example --profile other
      suture login --hub https://hub.example --token-file token
      suture login --hub https://hub.example --oidc
      suture login --forget
    """
    credentials.check_profile(profile)
    if forget:
        console.print("forgotten" if credentials.forget(profile) else "nothing was stored")
        return
    if hub is None:
        raise SutureError(
            "hub.unknown", "no hub is named", where="--hub", hint="suture login --hub https://hub.example"
        )
    if party is not None and not oidc:
        raise SutureError("login.party", "a token is of one party already", where="--party", hint="give --oidc with it")
    if oidc and token_file is not None:
        raise SutureError("login.twice", "give either --oidc or a token", where="--oidc, --token-file")
    if oidc:
        token = _sign_in(hub, party)
    elif token_file is not None:
        token = credentials.read_private(token_file)
    elif sys.stdin.isatty():
        token = typer.prompt("token", hide_input=True, err=True).strip()
    else:
        token = sys.stdin.readline().strip()
    with Hub(check_url(hub), token or None) as connected:
        signed_in = SignedIn.of(connected.whoami())
        skew = connected.connection.skew
    path = credentials.store(credentials.Credentials(connected.url, token, signed_in.party), profile)
    if format is Format.json:
        print_json(signed_in)
    else:
        roles = ", ".join(signed_in.roles) or "reader"
        console.print(f"you are {signed_in.party} ({roles}) at {connected.url}")
        notes.print(f"kept in {path}")
        _tell_of_clock(skew)
        if profile != credentials.DEFAULT:
            notes.print(f"next:  suture --hub {profile} models, or set SUTURE_PROFILE={profile}")


def _tell_of_clock(skew: float | None) -> None:
    """Say so if this machine's clock is far off: certificates and dates would not make sense."""
    if skew is not None and abs(skew) > _FAR_OFF:
        how = f"{abs(skew) / 86400:.0f} days {'behind' if skew > 0 else 'ahead of'}"
        notes.print(f"note:  this machine's clock is {how} the hub's; set it (NTP)")


@prints(list[Login])
def hubs(format: FormatOption = Format.text) -> None:
    """List the hubs that you are signed in at, and which one is used.

    \b
    Example:
      suture hubs
    """
    used = credentials.in_use()
    logins = [Login(name, login.url, login.party, used=name == used) for name, login in credentials.stored().items()]
    if format is Format.json:
        print_json(logins)
        return
    rows = [(row.profile, row.hub, row.party or "", "used" if row.used else "") for row in logins]
    print_table(("profile", "hub", "party", "note"), rows, empty="none; sign in with `suture login --hub URL`")


def _sign_in(url: str, party: str | None) -> str:
    with Connection(url) as hub:
        try:
            provider = hub.get("/v1/login")
        except NotFound:
            raise SutureError(
                "login.off",
                "this hub has no identity provider",
                where=hub.url,
                hint="ask your party's admin for a token, then: suture login",
            ) from None
        try:
            issuer, client_id = str(provider["issuer"]), str(provider["client_id"])
        except (KeyError, TypeError):
            raise SutureError("hub.answer", "it does not say where to sign in", where=hub.url) from None
        id_token = sign_in(issuer, client_id, _show)
        answer = hub.post("/v1/login", {"id_token": id_token, **({"party": party} if party is not None else {})})
        return str(answer["token"])


def _show(code: Code) -> None:
    notes.print(f"open    {code.address}")
    notes.print(f"enter   {code.text}")
    if code.complete is not None:
        notes.print(f"or open {code.complete}")
    notes.print("waiting until you have signed in there; Ctrl-C ends it")
