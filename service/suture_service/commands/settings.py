"""The hub's settings, for the commands that work on its database and store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture_contract.errors import SutureError

if TYPE_CHECKING:
    from suture_service.settings import Settings


def hub_settings() -> Settings:
    """Return the hub's settings from the environment; raises `SutureError` naming the variable that is wrong."""
    try:
        from suture_service.settings import read_settings
    except ModuleNotFoundError as error:
        raise SutureError(
            "hub.not_installed", f"{error.name} is not installed", hint="pip install 'suture[service]'"
        ) from None
    return read_settings()
