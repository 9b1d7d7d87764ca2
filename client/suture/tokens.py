"""A party's tokens at the hub."""

from __future__ import annotations

from suture.http import Connection, segment
from suture.responses import TokenInfo


class Tokens:
    """The tokens of a party and of its sites, for its admin."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, party: str | None = None) -> list[TokenInfo]:
        """Return the tokens of a party, your own by default, without secrets, ended ones included (role `admin`)."""
        path = f"/v1/parties/{segment(party or self._own())}/tokens"
        return [TokenInfo.of(item, path) for item in self._connection.pages(path)]

    def revoke(self, token_id: str) -> None:
        """End a token at once (role `admin` of its party). Repeating it is harmless."""
        self._connection.request("DELETE", f"/v1/tokens/{segment(token_id)}")

    def _own(self) -> str:
        return str(self._connection.get("/v1/whoami")["party"])
