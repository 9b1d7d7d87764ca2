"""Which hub, and as whom: arguments first, then SUTURE_HUB and SUTURE_TOKEN, then what `suture login` stored."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from suture.http import check_token, check_url
from suture_contract.errors import SutureError


@dataclass(frozen=True)
class Credentials:
    """A hub's address and the token for it (never shown)."""

    url: str
    token: str | None = field(repr=False)


def resolve(url: str | None = None, token: str | None = None) -> Credentials:
    """Return what to use; raises `SutureError` `hub.unknown` when no hub is named anywhere.

    A stored token goes to the hub it was stored for and to no other.
    """
    url = url or os.environ.get("SUTURE_HUB")
    token = token or os.environ.get("SUTURE_TOKEN")
    stored = None if url and token else _stored()
    if url is None:
        if stored is None:
            raise SutureError(
                "hub.unknown",
                "no hub is named",
                where="hub URL",
                hint="type `suture login`, set SUTURE_HUB, or pass the URL",
            )
        url = stored.url
    url = check_url(url)
    if token is None and stored is not None and stored.url == url:
        token = stored.token
    return Credentials(url, check_token(token) if token is not None else None)


def store(credentials: Credentials) -> Path:
    """Keep the credentials for later, readable by this user alone; returns the file."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, json.dumps({"hub": credentials.url, "token": credentials.token}) + "\n")
    return path


def forget() -> bool:
    """Delete what `store` kept; returns whether there was anything."""
    try:
        _path().unlink()
    except FileNotFoundError:
        return False
    return True


def read_private(path: Path) -> str:
    """Return the only line of a secret's file; refuses a file that others than its owner may read."""
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise SutureError("secret.unreadable", error.strerror or "cannot be read", where=str(path)) from None
    if mode & 0o077:
        raise SutureError("secret.exposed", "other users can read this file", where=str(path), hint=f"chmod 600 {path}")
    return text


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "suture" / "login.json"


def _stored() -> Credentials | None:
    path = _path()
    if not path.exists():
        return None
    try:
        content = json.loads(read_private(path))
        return Credentials(check_url(content["hub"]), content["token"])
    except (ValueError, KeyError, TypeError):
        raise SutureError(
            "login.damaged", "this file is not what `suture login` writes", where=str(path), hint="type `suture login`"
        ) from None
