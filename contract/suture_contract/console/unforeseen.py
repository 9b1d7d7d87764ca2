"""What nobody foresaw: one line for whoever typed the command, and the whole of it in a file of theirs."""

from __future__ import annotations

import secrets
import tempfile
import traceback
from pathlib import Path

from suture_contract.console.tokens import without_tokens
from suture_contract.errors import SutureError
from suture_contract.exit_codes import ExitCode
from suture_contract.files import write_text
from suture_contract.home import cache_folder


class Unforeseen(SutureError):
    """A fault of Suture's own."""

    exit_code = ExitCode.ERROR


def unforeseen(error: BaseException) -> Unforeseen:
    """Return what is told about a fault, and write its traceback, without tokens, for this user alone."""
    name = f"error-{secrets.token_hex(8)}"
    hint = "run it again where HOME, or XDG_CACHE_HOME, can be written to: then the whole error is kept in a file"
    where = _keep(name, "".join(traceback.format_exception(error)))
    if where is not None:
        hint = "look into this file; if you cannot mend it, report it with the file, which may hold names of yours"
    return Unforeseen(
        "suture.unforeseen",
        f"something went wrong that nobody foresaw ({type(error).__name__}, {name})",
        where=str(where) if where is not None else None,
        hint=hint,
    )


def _errors() -> str:
    return str(cache_folder() / "errors")


def _keep(name: str, text: str) -> Path | None:
    text = without_tokens(text)
    for folder in (_errors, tempfile.gettempdir):
        try:
            path = Path(folder()) / f"{name}.txt"
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(path, text, private=True)
        except (SutureError, OSError):
            continue
        return path
    return None
