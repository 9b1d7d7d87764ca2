"""Files of models in huggingface_hub's cache: its layout, locks, retries and progress bars; verified here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from suture.answers import File, Revision
from suture.http import Connection, is_loopback, model_path, segment
from suture.parcel import sha256_of
from suture.transfers import landing
from suture_stitching.errors import SutureError

_AT_ONCE = 2**20


def cached(connection: Connection, revision: Revision, file: File) -> Path:
    """Return a file of a revision, downloaded unless it is there already; its digest is that of `file`.

    Raises what `Connection.download` raises.
    """
    return _found(connection, revision, file, lambda path: _is(path, file))


def place(connection: Connection, revision: Revision, file: File, target: Path) -> None:
    """Put a file of a revision at `target`, from the cache; one that is there already is left alone.

    Raises what `Connection.download` raises.
    """
    if not _is(target, file):
        with landing(target) as partial:
            # A copy and no link: who edits what was pulled must not alter the cache.
            _found(connection, revision, file, lambda path: _copied(path, partial, file))


def _found(connection: Connection, revision: Revision, file: File, is_right: Callable[[Path], bool]) -> Path:
    """Return the place of a file in the cache, where `is_right` was asked whether its content is that of `file`."""
    # Imported here: it is slow to load, and most commands need no content.
    from huggingface_hub import errors, hf_hub_download

    cache = folder()
    try:
        for damaged in () if _behind_a_proxy(connection.url) else (False, True):
            found = hf_hub_download(
                revision.repo,
                file.name,
                revision=revision.id,
                endpoint=connection.url,
                token=connection.token or False,
                cache_dir=cache,
                force_download=damaged,
            )
            path = Path(found).resolve()
            if is_right(path):
                return path
    except (errors.HTTPError, errors.EntryNotFoundError, OSError):  # type: ignore[attr-defined]
        # HF_HUB_OFFLINE, a hub that refuses: asked directly, the hub either gives the file or says why not, in words
        # that hold neither token nor address.
        pass
    target = cache / "direct" / f"{file.sha256}-{file.name}"
    if not (target.is_file() and is_right(target)):
        at = f"{model_path(revision.repo)}/revisions/{revision.id}/files/{segment(file.name)}"
        connection.download(at, target, sha256=file.sha256, size=file.size)
        if not is_right(target):
            raise SutureError(
                "cache.changed", "the file was changed while it was read", where=str(target), hint="try again"
            )
    return target


def folder() -> Path:
    """Return the folder of downloaded models."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "suture" / "models"


def _is(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _copied(source: Path, target: Path, file: File) -> bool:
    """Copy a file, and say whether its content is that of `file`."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_AT_ONCE))
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            writer.write(buffer[:count])
    return digest.hexdigest() == file.sha256


def _behind_a_proxy(url: str) -> bool:
    """Whether the environment puts a proxy, which cannot reach it, between this machine and itself."""
    parts = urlsplit(url)
    proxied = getproxies().keys() & {parts.scheme, "all"}
    return is_loopback(url) and bool(proxied) and not proxy_bypass(parts.hostname or "")
