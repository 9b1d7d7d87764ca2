"""Files of models in huggingface_hub's cache: its layout, locks, retries and progress bars; verified here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx

from suture.http import Connection, model_path, segment
from suture.network import is_reached_alike
from suture.responses import File, Revision
from suture.transfers import OnBytes, landing
from suture_contract import home
from suture_contract.files import can_lock, sha256_of

_AT_ONCE = 2**20


def cached(connection: Connection, revision: Revision, file: File) -> Path:
    """Return a file of a revision, downloaded unless it is there already; its digest is that of `file`.

    Raises what `Connection.download` raises.
    """
    return _from_cache(connection, revision, file) or _downloaded(connection, revision, file)


def place(
    connection: Connection, revision: Revision, file: File, target: Path, *, on_bytes: OnBytes | None = None
) -> None:
    """Put a file of a revision at `target`, from the cache if it is there; one that is in place already is left alone.

    What the cache does not hold comes straight from the hub: hashed on its way, it is written once and read by nobody.
    Raises what `Connection.download` raises.
    """
    if _is(target, file):
        return
    for kept in _kept(revision, file):
        # A copy and no link: who edits what was pulled must not alter the cache.
        with suppress(_OtherContent), landing(target) as partial:
            _copy(kept, partial, file)
            return
    connection.download(_address(revision, file), target, sha256=file.sha256, size=file.size, on_bytes=on_bytes)


def _from_cache(connection: Connection, revision: Revision, file: File) -> Path | None:
    """Return the place of a file that is in the cache, or that the library put there, if its content is right."""
    # Imported here: it is slow to load, and most commands need no content.
    from huggingface_hub import errors, hf_hub_download

    try:
        # The library waits for a lock for ever where the disk has none.
        for damaged in (False, True) if is_reached_alike(connection.url) and can_lock(folder()) else ():
            location = hf_hub_download(
                revision.repo,
                file.name,
                revision=revision.id,
                endpoint=connection.url,
                token=connection.token or False,
                cache_dir=folder(),
                force_download=damaged,
            )
            path = Path(location).resolve()
            if _is(path, file):
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
    return target if _is(target, file) else None


def _downloaded(connection: Connection, revision: Revision, file: File) -> Path:
    """Ask the hub directly for a file; it has its place in the cache when all of it came and was verified."""
    return connection.download(_address(revision, file), _direct(file), sha256=file.sha256, size=file.size)


def _address(revision: Revision, file: File) -> str:
    return f"{model_path(revision.repo)}/revisions/{revision.id}/files/{segment(file.name)}"


def _kept(revision: Revision, file: File) -> Iterator[Path]:
    """Yield where the cache may hold a file of a revision."""
    from huggingface_hub import try_to_load_from_cache

    cached_path = try_to_load_from_cache(revision.repo, file.name, cache_dir=folder(), revision=revision.id)
    for path in (Path(cached_path) if isinstance(cached_path, str) else None, _direct(file)):
        if path is not None and path.is_file():
            yield path


def _direct(file: File) -> Path:
    return folder() / "direct" / f"{file.sha256}-{file.name}"


def folder() -> Path:
    """Return the folder of downloaded models."""
    return home.make(home.cache_folder() / "models", code="cache.unwritable")


def _is(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


class _OtherContent(Exception):
    """A kept file was damaged, or changed."""


def _copy(source: Path, target: Path, file: File) -> None:
    """Copy a file; raises `_OtherContent` if its content is not that of `file`."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_AT_ONCE))
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            writer.write(buffer[:count])
    if digest.hexdigest() != file.sha256:
        raise _OtherContent
