"""A party's public keys at the hub."""

from __future__ import annotations

from suture.http import Connection, segment
from suture.responses import Key


class Keys:
    """The public keys that parties have registered at one hub."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self, party: str) -> list[Key]:
        """Return a party's keys, oldest first, revoked ones included."""
        path = _path(party)
        return [Key.of(item, path) for item in self._connection.pages(path)]

    def register(self, party: str, name: str, public_key: str) -> Key:
        """Register a public key of your party, in PEM (role `admin`). Repeating it is harmless."""
        path = _path(party)
        return Key.of(self._connection.post(path, {"name": name, "public_key": public_key}, idempotent=True), path)

    def revoke(self, party: str, fingerprint: str, reason: str) -> Key:
        """Revoke a key of your party for good (role `admin`): what it signed, and all made of that, is flagged."""
        path = f"{_path(party)}/{segment(fingerprint)}/revoke"
        return Key.of(self._connection.post(path, {"reason": reason}, idempotent=True), path)


def _path(party: str) -> str:
    return f"/v1/parties/{segment(party)}/keys"
