"""What to say where something is missing that an extra of the installation brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from suture_contract.errors import SutureError
from suture_contract.windows import UNIX_ONLY, unsupported


def how_to_install(extras: str) -> str:
    """Return the command that installs Suture with these extras (`a,b`): by path, as no index has Suture."""
    return f"in your checkout of Suture: pip install '.[{extras}]'; with a wheel, its path instead of the dot"


def not_installed(what: str, extras: str, where: str | None = None) -> SutureError:
    """Return the error `suture.not_installed`, which says what is missing and how it is installed."""
    return SutureError("suture.not_installed", f"{what} is not installed", where=where, hint=how_to_install(extras))


@contextmanager
def needs(extras: str, where: str | None = None) -> Iterator[None]:
    """Raise `SutureError` `suture.not_installed` when a package that these extras bring is missing in the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "suture").partition(".")[0]
        if missing in UNIX_ONLY:
            raise unsupported(where) from None
        if missing.startswith("suture") and find_spec(missing) is not None:
            raise  # it is there: a fault of ours
        raise not_installed(missing, extras, where) from None
