"""Arguments and options that several commands of a hub's operator have."""

from __future__ import annotations

from typing import Annotated

import typer

PartyArgument = Annotated[str, typer.Argument(metavar="PARTY", help="the party's name")]
RoleOption = Annotated[
    list[str] | None,
    typer.Option(help="publisher, requester, steward, auditor, admin or operator; repeatable; reading needs none"),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="do not ask; scripts need it")]
