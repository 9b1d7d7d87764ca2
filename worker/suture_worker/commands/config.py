"""What all commands of a site's operator share: the configuration, and how things are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suture_worker.config import SiteConfig, load_site

ConfigArgument = Annotated[Path, typer.Argument(metavar="SITE.TOML", help="the site's configuration")]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="the task's id, as the list shows it")]
ReasonOption = Annotated[str | None, typer.Option(help="why; kept here, never sent")]
HERE = Path("site.toml")


def load(path: Path) -> SiteConfig:
    """Return the checked configuration; raises `SutureError` (`site.*`)."""
    return load_site(path)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
