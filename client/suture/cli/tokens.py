"""`suture tokens`: an admin looks after the tokens of the own party from afar."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from suture.hub import Hub
from suture.responses import TokenInfo
from suture_contract.console.terminal import Format, FormatOption, notes, print_json, print_table, prints


@prints(list[TokenInfo])
def list_tokens(
    all_of_them: Annotated[bool, typer.Option("--all", help="also those that have ended")] = False,
    format: FormatOption = Format.text,
) -> None:
    """List the tokens of your party and of its sites, without secrets (role admin).

    \b
    Example:
      suture tokens list
    """
    with Hub() as hub:
        tokens = [token for token in hub.tokens.list() if all_of_them or _state(token) in ("valid", "until")]
    if format is Format.json:
        print_json(tokens)
        return
    rows = [
        (
            token.id,
            token.name or "",
            f"site {token.site}" if token.site else ", ".join(token.roles),
            f"{token.last_used_at:%Y-%m-%d %H:%M}" if token.last_used_at else "never",
            f"until {token.expires_at:%Y-%m-%d}" if _state(token) == "until" else _state(token),
        )
        for token in tokens
    ]
    columns = ("id", "name", "for", "last used (UTC)", "state")
    print_table(columns, rows, empty="no tokens", prose=("for",), spare=("last used (UTC)",))


def revoke(token_id: Annotated[str, typer.Argument(metavar="ID", help="the token's id, not the token")]) -> None:
    """End a token of your party, or of one of its sites, at once (role admin).

    \b
    Example:
      suture tokens revoke tok_5f0c2a9be1d34c77
    """
    with Hub() as hub:
        hub.tokens.revoke(token_id)
    notes.print(f"revoked {token_id}")


def _state(token: TokenInfo) -> str:
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None:
        return "valid"
    return "until" if token.expires_at > datetime.now(UTC) else "ended"
