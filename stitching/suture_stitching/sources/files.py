"""Files of a source, in a folder or a zip archive, read by exact names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from suture_contract.errors import SutureError
from suture_contract.files import decoded

Place: TypeAlias = Path | zipfile.Path


def read_mapping(place: Place) -> dict[str, Any]:
    """Return what a JSON or YAML file says; raises `SutureError` `source.file`."""
    text = decoded(read(place), where=str(place), code="source.file")
    try:
        content = json.loads(text) if place.name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise _unreadable(place, str(error).partition("\n")[0]) from None
    if not isinstance(content, dict):
        raise _unreadable(place, "it holds no names with values")
    return content


def read(place: Place) -> bytes:
    """Return the bytes of a file; raises `SutureError` `source.file`."""
    try:
        return place.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise _unreadable(place, str(error)) from None


def _unreadable(place: Place, why: str) -> SutureError:
    return SutureError("source.file", f"cannot be read: {why}", where=str(place), hint="make or download it again")
