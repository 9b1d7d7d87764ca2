"""A party's tokens at the hub."""

from __future__ import annotations

from collections.abc import Sequence

from suture.arguments import listed
from suture.http import Connection, segment
from suture.listing import Listing
from suture.responses import NewToken, TokenInfo


class Tokens:
    """The tokens of a party and of its sites, for its admin."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, party: str | None = None) -> Listing[TokenInfo]:
        """Return the tokens of a party, your own by default, without secrets, ended ones included (role `admin`)."""
        path = f"/v1/parties/{segment(party or self._own())}/tokens"
        return Listing(TokenInfo.of(item, path) for item in self._connection.pages(path))

    def create(self, roles: Sequence[str], *, name: str | None = None, days: int | None = None) -> NewToken:
        """Make a token of your party (role `admin`); keep its secret at once, the hub tells it only here.

        `roles` are such as `reader`, `publisher`, `requester`, `steward` and `admin`; it ends after `days`, if any.
        """
        path = f"/v1/parties/{segment(self._own())}/tokens"
        body = {"roles": listed(roles, "roles"), "name": name, "days": days}
        answer = self._connection.post(path, {key: value for key, value in body.items() if value is not None})
        return NewToken.of(answer, path)

    def revoke(self, token_id: str) -> None:
        """End a token at once (role `admin` of its party). Repeating it is harmless."""
        self._connection.request("DELETE", f"/v1/tokens/{segment(token_id)}")

    def _own(self) -> str:
        return str(self._connection.get("/v1/whoami")["party"])
