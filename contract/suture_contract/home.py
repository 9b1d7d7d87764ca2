"""Where this user's own files are: logins and trusted keys, downloaded models, and what went wrong."""

from __future__ import annotations

import os
from pathlib import Path

from suture_contract.errors import SutureError
from suture_contract.files import trouble


def config_folder() -> Path:
    """Return the folder of what `suture login` and `suture keys trust` keep; raises `SutureError` `home.unknown`."""
    return _folder("XDG_CONFIG_HOME", ".config")


def cache_folder() -> Path:
    """Return the folder of what can be had again; raises `SutureError` `home.unknown`."""
    return _folder("XDG_CACHE_HOME", ".cache")


def make(folder: Path, *, code: str) -> Path:
    """Create one of these folders, for this user alone; raises `SutureError` `code` where it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        problem = trouble(error, where=folder)
        hint = "set HOME, or XDG_CONFIG_HOME and XDG_CACHE_HOME, to folders that you may write to"
        raise SutureError(code, problem.message, where=problem.where, hint=hint) from None
    return folder


def _folder(variable: str, name: str) -> Path:
    base = os.environ.get(variable)
    if base:
        return Path(base) / "suture"
    try:
        return Path.home() / name / "suture"
    except (RuntimeError, KeyError):  # without HOME, and this account is not in the list of users
        raise SutureError(
            "home.unknown",
            "this account has no home folder",
            where="HOME",
            hint=f"set HOME, or {variable}, to a folder that you may write to",
        ) from None
