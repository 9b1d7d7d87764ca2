"""Files of models in huggingface_hub's cache: its layout, locks, retries and progress bars; verified here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx

from suture.bundle import sha256_of
from suture.http import Connection, model_path, segment
from suture.network import is_reached_alike
from suture.responses import File, Revision
from suture.transfers import landing
from suture_contract import home
from suture_contract.errors import SutureError
from suture_contract.files import can_lock

_AT_ONCE = 2**20


def cached(connection: Connection, revision: Revision, file: File) -> Path:
    """Return a file of a revision, downloaded unless it is there already; its digest is that of `file`.

    Raises what `Connection.download` raises.
    """
    return _found(connection, revision, file, lambda path: _is(path, file)) or _downloaded(connection, revision, file)


def place(connection: Connection, revision: Revision, file: File, target: Path) -> None:
    """Put a file of a revision at `target`, from the cache; one that is there already is left alone.

    Raises what `Connection.download` raises.
    """
    if not _is(target, file):
        with landing(target) as partial:
            # A copy and no link: who edits what was pulled must not alter the cache.
            if _found(connection, revision, file, lambda path: _copied(path, partial, file)):
                return
            source = _downloaded(connection, revision, file)
            if not _copied(source, partial, file):
                raise SutureError(
                    "cache.changed", "the file was changed while it was read", where=str(source), hint="try again"
                )


def _found(connection: Connection, revision: Revision, file: File, is_right: Callable[[Path], bool]) -> Path | None:
    """Return the place of a file that is in the cache, or that the library put there, if `is_right` said so of it."""
    # Imported here: it is slow to load, and most commands need no content.
    from huggingface_hub import errors, hf_hub_download

    try:
        # The library waits for a lock for ever where the disk has none.
        for damaged in (False, True) if is_reached_alike(connection.url) and can_lock(folder()) else ():
            found = hf_hub_download(
                revision.repo,
                file.name,
                revision=revision.id,
                endpoint=connection.url,
                token=connection.token or False,
                cache_dir=folder(),
                force_download=damaged,
            )
            path = Path(found).resolve()
            if is_right(path):
                return path
    except (
        errors.HTTPError,  # type: ignore[attr-defined]
        errors.EntryNotFoundError,
        httpx.InvalidURL,
        ImportError,
        OSError,
        ValueError,
    ):
        # HF_HUB_OFFLINE, an environment it does not understand, a hub that refuses: asked directly, the hub either
        # gives the file or says why not, in words that hold neither token nor address.
        pass
    target = _direct(file)
    return target if target.is_file() and is_right(target) else None


def _downloaded(connection: Connection, revision: Revision, file: File) -> Path:
    """Ask the hub directly for a file; it has its place in the cache when all of it came and was verified."""
    at = f"{model_path(revision.repo)}/revisions/{revision.id}/files/{segment(file.name)}"
    return connection.download(at, _direct(file), sha256=file.sha256, size=file.size)


def _direct(file: File) -> Path:
    return folder() / "direct" / f"{file.sha256}-{file.name}"


def folder() -> Path:
    """Return the folder of downloaded models."""
    return home.make(home.cache_folder() / "models", code="cache.unwritable")


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
