"""The hub's settings, for the commands that work on its database and store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suture_stitching.errors import SutureError

if TYPE_CHECKING:
    from suture_service.settings import Settings


def hub_settings() -> Settings:
    """Return the hub's settings from the environment; raises `SutureError` naming the variable that is wrong."""
    try:
        from pydantic import ValidationError

        from suture_service.settings import Settings
    except ModuleNotFoundError as error:
        raise SutureError(
            "hub.not_installed", f"{error.name} is not installed", hint="pip install 'suture[service]'"
        ) from None
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = f"SUTURE_HUB_{first['loc'][0]}".upper() if first["loc"] else "SUTURE_HUB_…"
        raise SutureError("hub.settings", first["msg"], where=variable, hint="correct this variable") from None
