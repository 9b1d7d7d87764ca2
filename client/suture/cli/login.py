"""The command that keeps a party's token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from suture import credentials
from suture.cli.terminal import Format, FormatOption, console, notes, print_json
from suture.hub import Hub
from suture_stitching.errors import SutureError


def login(
    hub: Annotated[str | None, typer.Option(metavar="URL", envvar="SUTURE_HUB", help="the hub's address")] = None,
    token_file: Annotated[Path | None, typer.Option(help="a file that holds the token; else it is asked for")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="delete the stored token instead")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Keep a hub's address and your token.

    They are checked at the hub and stored for later commands, readable by you alone. The token is asked for, read
    from --token-file, or taken from standard input: never from the command line, where other users of this machine
    could see it.

    \b
    Examples:
      suture login --hub https://hub.example
      suture login --hub https://hub.example --token-file token
      suture login --forget
    """
    if forget:
        console.print("forgotten" if credentials.forget() else "nothing was stored")
        return
    if hub is None:
        raise SutureError(
            "hub.unknown", "no hub is named", where="--hub", hint="suture login --hub https://hub.example"
        )
    if token_file is not None:
        token = credentials.read_private(token_file)
    elif sys.stdin.isatty():
        token = typer.prompt("token", hide_input=True, err=True).strip()
    else:
        token = sys.stdin.readline().strip()
    found = credentials.Credentials(hub, token)
    with Hub(hub, token or None) as connected:
        found = credentials.Credentials(connected.url, token)
        who = connected.whoami()
    path = credentials.store(found)
    if format is Format.json:
        print_json(who)
    else:
        roles = ", ".join(who.get("roles", ())) or "reader"
        console.print(f"you are {who.get('party')} ({roles}) at {found.url}")
        notes.print(f"kept in {path}")
