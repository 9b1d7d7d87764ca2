"""Which hub, and as whom: what is passed, then the environment, then what `suture login` stored.

`suture login` stores any number of logins, each under a name, its profile; the one without a name is `default`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from suture.http import check_token, check_url
from suture_contract import home
from suture_contract.errors import SutureError
from suture_contract.files import is_there, write_text
from suture_contract.naming import did_you_mean, nearest

DEFAULT = "default"
_OURS = "SUTURE_"
#: On Windows a mode says nothing of what others may do.
_MODES_COUNT = os.name != "nt"
_VARIABLES = ("SUTURE_HUB", "SUTURE_TOKEN", "SUTURE_PROFILE", "SUTURE_KEY_PASSWORD")
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_chosen: ContextVar[str | None] = ContextVar("the hub that `suture --hub` names", default=None)


@dataclass(frozen=True)
class Credentials:
    """A hub's address, the token for it (never shown), and whose token that is, if it was asked."""

    url: str
    token: str | None = field(repr=False)
    party: str | None = field(default=None, compare=False)


def resolve(hub: str | None = None, token: str | None = None) -> Credentials:
    """Return what to use; raises `SutureError` `hub.unknown` when no hub is named anywhere.

    `hub` is an address, or the profile of a login, which brings its token. A stored token goes to the hub it was stored
    for and to no other.
    """
    _check_environment()
    hub, environment = hub or _chosen.get(), os.environ
    if hub is not None and _PROFILE.fullmatch(hub):
        return _checked(_login(hub), token)
    if hub is None and (profile := environment.get("SUTURE_PROFILE")):
        for name in ("SUTURE_HUB", "SUTURE_TOKEN"):
            if environment.get(name):
                raise SutureError(
                    "hub.ambiguous",
                    f"{name} and SUTURE_PROFILE both say which hub, and as whom",
                    where=name,
                    hint="unset one of them, or say it with `suture --hub`",
                )
        return _checked(_login(profile), token)
    hub = hub or environment.get("SUTURE_HUB")
    token = token or environment.get("SUTURE_TOKEN")
    if hub is None:
        return _checked(_login(DEFAULT), token)
    url = check_url(hub)
    return _checked(Credentials(url, token or _stored_for(url)), None)


def _check_environment() -> None:
    """Raise `SutureError` `environment.unknown` for a variable that was probably meant to be one of ours.

    Otherwise another hub, or another party's token, would silently be used.
    """
    known = {name.removeprefix(_OURS): name for name in _VARIABLES}
    for name in sorted(os.environ):
        of_the_hub = name.startswith("SUTURE_HUB_") and name not in ("SUTURE_HUB_URL", "SUTURE_HUB_TOKEN")
        if name.startswith(_OURS) and name not in _VARIABLES and not of_the_hub:
            close = [known[variable] for variable in nearest(name.removeprefix(_OURS), known)]
            if close:
                hint = f"{did_you_mean(name, close)} Unset it if not"
                raise SutureError("environment.unknown", f"there is no variable {name}", where=name, hint=hint)


@contextlib.contextmanager
def choosing(hub: str) -> Iterator[None]:
    """Use this address or profile within the block wherever none is passed."""
    before = _chosen.set(hub)
    try:
        yield
    finally:
        _chosen.reset(before)


def in_use() -> str | None:
    """Return the profile that is used where nothing is passed; None where the environment names an address."""
    return os.environ.get("SUTURE_PROFILE") or (None if os.environ.get("SUTURE_HUB") else DEFAULT)


def stored() -> dict[str, Credentials]:
    """Return all logins by their profile, the default one first."""
    path = _path()
    return _read(path, read_private(path)) if is_there(path) else {}


def store(credentials: Credentials, profile: str = DEFAULT) -> Path:
    """Keep a login for later, readable by this user alone; returns the file."""
    path = _path()
    logins = {**_others(path, profile), check_profile(profile): credentials}
    home.make(path.parent, code="login.unwritable")
    _write(path, logins)
    return path


def forget(profile: str = DEFAULT) -> bool:
    """Delete a login that `store` kept; returns whether there was one."""
    path = _path()
    if not is_there(path):
        return False
    others = _others(path, profile)
    if others and profile not in stored():
        return False
    if others:
        _write(path, others)
    else:
        path.unlink()
    return True


def check_profile(name: str) -> str:
    """Return the name; raise `SutureError` `profile.name` if no profile can be called so."""
    if not _PROFILE.fullmatch(name):
        raise SutureError(
            "profile.name",
            f"{name!r} cannot name a profile",
            where="--profile",
            hint="use letters, digits, - and _, at most 64",
        )
    return name


def read_private(path: Path) -> str:
    """Return the only line of a secret's file; refuses a file that others than its owner may read."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise SutureError("secret.unreadable", error.strerror or "cannot be read", where=str(path)) from None
    if mode & 0o077 and _MODES_COUNT:
        raise SutureError("secret.exposed", "other users can read this file", where=str(path), hint=f"chmod 600 {path}")
    return text


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    write_text(path, text, private=True)


def _path() -> Path:
    return home.config_folder() / "login.json"


def _checked(login: Credentials, token: str | None) -> Credentials:
    token = token or login.token
    return Credentials(check_url(login.url), check_token(token) if token is not None else None, login.party)


def _login(profile: str) -> Credentials:
    logins = stored()
    if profile in logins:
        return logins[profile]
    if profile != DEFAULT:
        hint = f"{did_you_mean(profile, logins)}; `suture hubs` lists them, an address starts with https://"
        raise SutureError("profile.unknown", f"no login has the name {profile!r}", where="profile", hint=hint)
    names = " or ".join(f"`suture --hub {name}`" for name in logins)
    raise SutureError(
        "hub.unknown",
        "no hub is named",
        where="hub URL",
        hint=f"say {names}, or set SUTURE_PROFILE" if names else "type `suture login`, set SUTURE_HUB, or pass the URL",
    )


def _stored_for(url: str) -> str | None:
    """Return the token that was stored for this hub, the default login's before others."""
    logins = {name: login for name, login in stored().items() if login.url == url}
    if len(logins) > 1 and DEFAULT not in logins:
        names = " or ".join(f"`suture --hub {name}`" for name in logins)
        raise SutureError("hub.ambiguous", "several logins are for this hub", where=url, hint=f"say {names}")
    return next((login.token for login in logins.values()), None)


def _others(path: Path, profile: str) -> dict[str, Credentials]:
    """Return the logins but that one; none where the file is damaged, since it is about to be written anew."""
    try:
        logins = _read(path, path.read_text(encoding="utf-8"))
    except (OSError, SutureError):
        return {}
    return {name: login for name, login in logins.items() if name != profile}


def _read(path: Path, text: str) -> dict[str, Credentials]:
    try:
        content = json.loads(text)
        profiles: Mapping[str, Mapping[str, str]] = content.get("profiles", {DEFAULT: content})
        logins = {
            name: Credentials(check_url(login["hub"]), login["token"], login.get("party"))
            for name, login in profiles.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SutureError(
            "login.damaged", "this file is not what `suture login` writes", where=str(path), hint="type `suture login`"
        ) from None
    return dict(sorted(logins.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def _write(path: Path, logins: Mapping[str, Credentials]) -> None:
    profiles = {name: {"hub": login.url, "token": login.token, "party": login.party} for name, login in logins.items()}
    write_private(path, json.dumps({"profiles": profiles}) + "\n")
