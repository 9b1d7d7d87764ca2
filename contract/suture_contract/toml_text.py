"""Values as TOML writes them, in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from suture_contract.errors import SutureError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml(value: Any) -> str:
    """Return texts, paths, numbers, truth values, lists and mappings of them in TOML.

    Raises `SutureError` (`file.encoding`) for a name of a file that is no text: no TOML can hold it.
    """
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(name)} = {toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(toml, value)) + "]"
    return _text(os.fspath(value)) if isinstance(value, str | os.PathLike) else json.dumps(value)


def toml_key(name: str) -> str:
    """Return a key in TOML, quoted where it has to be."""
    return name if _BARE.fullmatch(name) else _text(name)


def check_text(name: str) -> None:
    """Raise `SutureError` (`file.encoding`) for a name of a file that is no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SutureError(
            "file.encoding",
            "this name holds bytes that are no text here",
            where=name.encode(errors="backslashreplace").decode(),
            hint="rename it, or set a locale of UTF-8: LC_ALL=C.UTF-8",
        ) from None


def _text(text: str) -> str:
    check_text(text)
    # JSON escapes what TOML does, but for this one. What JSON writes in ASCII as two surrogates is none of TOML's.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
