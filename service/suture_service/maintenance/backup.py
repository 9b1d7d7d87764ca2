"""Backup and restore: a folder with all rows and all content that they refer to, for a hub of either kind.

A backup is a folder: `backup.json` says what it is, `database-….sqlite` holds the rows whatever database the hub has,
`sha256/` the content as a hub's own folder does. A later backup into the same folder copies only what is new, and
`backup.json` changes last: a backup that breaks off leaves the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from pydantic import TypeAdapter

from suture_contract.errors import SutureError
from suture_contract.files import sha256_of, telling, write_text
from suture_service import operate
from suture_service.database import Database, open_engine, telling_of_database
from suture_service.errors import Unavailable
from suture_service.hub import utc_now
from suture_service.maintenance import rows
from suture_service.maintenance.progress import OnProgress, ignore
from suture_service.models.references import referenced
from suture_service.purges import service as purges
from suture_service.purges.schemas import KeptPurge
from suture_service.settings import Settings
from suture_service.storage import BlobStore, open_store

_MANIFEST, _SCHEMA = "backup.json", "suture.backup/1"
#: How often a backup starts again because a collection removed what its rows still refer to.
_ROUNDS = 3
_COPIES_AT_ONCE = 4
#: Files that are not larger are read whole, and kept some at a time.
_SMALL, _AT_ONCE, _FILES_AT_ONCE = 2**20, 4 * 2**20, 200


@dataclass(frozen=True)
class Copied:
    """How many blobs there are and how many bytes, how many of them were copied now, and the digests of the missing."""

    blobs: int
    bytes: int
    copied: int
    missing: list[str]


@telling_of_database()
def back_up(settings: Settings, folder: Path, *, on_progress: OnProgress = ignore) -> Copied:
    """Write a backup into `folder`, or bring the one in it up to date; safe while hubs run.

    The rows come first, as they are at one moment: what they refer to was in the store before and does not change.
    """
    with telling(folder, code="backup.folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / _MANIFEST).exists() and any(
        path.name != "tmp" and path.name != "sha256" for path in folder.iterdir()
    ):
        raise SutureError(
            "backup.folder", "the folder holds something else", where=str(folder), hint="give an empty or new folder"
        )
    source, target = open_store(settings), BlobStore(str(folder))
    target.sweep()
    for _ in range(_ROUNDS):
        database = folder / f"database-{secrets.token_hex(8)}.sqlite"
        try:
            rows.dump(settings, database, on_progress)
            wanted = _referenced_by(database)
            copied, missing = asyncio.run(_copy(source, target, wanted, on_progress))
        except BaseException:
            database.unlink(missing_ok=True)
            raise
        if not missing or not _collected_meanwhile(settings, missing):
            break
        database.unlink()
    done = Copied(len(wanted), sum(wanted.values()), copied, missing)
    _write_manifest(folder, database, done)
    _remove_unwanted(folder, database, target)
    return done


@telling_of_database()
def restore(
    settings: Settings, folder: Path, *, purged: Sequence[KeptPurge] = (), on_progress: OnProgress = ignore
) -> Copied:
    """Fill an empty hub of either kind with a backup; every blob and the rows are checked against their digests.

    What was `purged` after the backup was made does not come back. Broken off, it can be repeated: the rows come last,
    all or none.
    """
    manifest = _read_manifest(folder)
    target = open_store(settings)
    with tempfile.TemporaryDirectory() as temporary:
        database = Path(temporary) / "database.sqlite"
        shutil.copyfile(folder / manifest["database"], database)
        if sha256_of(database) != manifest["database_sha256"]:
            raise SutureError("backup.damaged", "the rows are not those that were written", where=manifest["database"])
        rows.migrate_file(settings, database)
        rows.check_empty(settings)
        _purge_rows(database, purged)
        wanted = _referenced_by(database)
        copied, missing = asyncio.run(_copy(BlobStore(str(folder)), target, wanted, on_progress))
        lost = sorted({*missing} - {*manifest["missing"]})
        if lost:
            raise SutureError("backup.damaged", f"{len(lost)} files are not in the backup", where=lost[0])
        rows.load(database, settings, on_progress)
    with operate.running(settings) as hub:
        purges.finish_all(hub)
    return Copied(len(wanted), sum(wanted.values()), copied, missing)


@telling_of_database()
def purge_backup(settings: Settings, folder: Path, purged: Sequence[KeptPurge]) -> list[str]:
    """Take out of a backup, rows and content, what was purged after it was made; return the ids of these purges.

    The backup has this version's schema afterwards. Broken off, it can be repeated: `backup.json` changes before
    anything is removed.
    """
    manifest = _read_manifest(folder)
    before, target = folder / manifest["database"], BlobStore(str(folder))
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "database.sqlite"
        shutil.copyfile(before, copy)
        rows.migrate_file(settings, copy)
        applied = _purge_rows(copy, purged)
        if applied:
            database = folder / f"database-{secrets.token_hex(8)}.sqlite"
            rows.compact(copy, database)
    if applied:
        wanted = _referenced_by(database)
        missing = [digest for digest in manifest["missing"] if digest in wanted]
        _write_manifest(folder, database, Copied(len(wanted), sum(wanted.values()), 0, missing))
    _remove_unwanted(folder, folder / _read_manifest(folder)["database"], target)
    return applied


def _purge_rows(database: Path, purged: Sequence[KeptPurge]) -> list[str]:
    """Purge what a file of rows does not know to be purged; return the ids of these purges."""
    if not purged:
        return []
    opened = Database(f"sqlite:///{database}")
    try:
        with opened.writing() as session:
            return purges.apply_again(session, purged, utc_now())
    finally:
        opened.close()


def _remove_unwanted(folder: Path, database: Path, target: BlobStore) -> None:
    """Remove what the rows of a backup do not refer to, and rows of other backups in the same folder."""
    for other in folder.glob("database-*.sqlite"):
        if other != database:
            other.unlink()
    wanted = _referenced_by(database)
    target.delete([digest for digest, _ in target.list() if digest not in wanted])


async def _copy(
    source: BlobStore, target: BlobStore, wanted: Mapping[str, int], on_progress: OnProgress
) -> tuple[int, list[str]]:
    """Copy what the target does not hold yet; return how many that were, and what the source does not hold."""
    there = {digest: stored.size for digest, stored in target.list()}
    new = {digest: size for digest, size in wanted.items() if there.get(digest) != size}
    small, large = _portions(new), iter([digest for digest, size in new.items() if size > _SMALL])
    total = sum(wanted.values())
    done = total - sum(new.values())
    copied, missing = 0, list[str]()

    async def work() -> None:
        nonlocal done, copied
        for portion in small:
            contents = await run_sync(_read, source, portion, new)
            await target.put(contents)
            copied += len(contents)
            missing.extend(digest for digest in portion if digest not in contents)
            done += sum(new[digest] for digest in portion)
            on_progress("bytes", done, total)
        for digest in large:
            size = new[digest]
            try:
                content = await source.stream(digest, 0, size)
                async with target.receive(content, limit=size, where=digest) as upload:
                    if (upload.sha256, upload.size) != (digest, size):
                        raise _damaged(digest)
                    await upload.keep()
                copied += 1
            except Unavailable as error:
                if error.code != "store.missing":
                    raise
                missing.append(digest)
            done += size
            on_progress("bytes", done, total)

    on_progress("bytes", done, total)
    async with asyncio.TaskGroup() as group:
        for _ in range(_COPIES_AT_ONCE):
            group.create_task(work())
    return copied, sorted(missing)


def _portions(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield small files, some MiB at a time: to hand over each alone takes longer than to copy it."""
    portion, held = list[str](), 0
    for digest, size in sizes.items():
        if size > _SMALL:
            continue
        portion.append(digest)
        held += size
        if held >= _AT_ONCE or len(portion) == _FILES_AT_ONCE:
            yield portion
            portion, held = [], 0
    if portion:
        yield portion


def _read(source: BlobStore, digests: Sequence[str], sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return small files, checked, as far as the store holds them."""
    contents = {}
    for digest in digests:
        try:
            content = source.read_all(digest, 0, sizes[digest])
        except Unavailable as error:
            if error.code != "store.missing":
                raise
            continue
        if hashlib.sha256(content).hexdigest() != digest:
            raise _damaged(digest)
        contents[digest] = content
    return contents


def _damaged(digest: str) -> SutureError:
    return SutureError(
        "backup.damaged",
        "the content does not have the digest it is kept under",
        where=digest,
        hint="`suture hub reconcile --deep` finds all such files",
    )


def _referenced_by(database: Path) -> dict[str, int]:
    engine = open_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            return referenced(connection)
    finally:
        engine.dispose()


def _collected_meanwhile(settings: Settings, missing: list[str]) -> bool:
    """Whether the rows have stopped to refer to one of these."""
    engine = open_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            return len(referenced(connection, missing)) < len(missing)
    finally:
        engine.dispose()


def read_purges(path: Path) -> list[KeptPurge]:
    """Return what `suture hub purges --format json` has written; raises `SutureError` (`purges.unknown`)."""
    try:
        return TypeAdapter(list[KeptPurge]).validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise SutureError(
            "purges.unknown",
            "this is no list of purges",
            where=str(path),
            hint="at a hub that knows them: suture hub purges --format json > purges.json",
        ) from None


def _write_manifest(folder: Path, database: Path, done: Copied) -> None:
    document = {
        "schema": _SCHEMA,
        "created_at": utc_now().isoformat(timespec="seconds"),
        "suture": version("suture"),
        "database": database.name,
        "database_sha256": sha256_of(database),
        "blobs": done.blobs,
        "bytes": done.bytes,
        "missing": done.missing,
    }
    write_text(folder / _MANIFEST, json.dumps(document, indent=2) + "\n", private=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != _SCHEMA or Path(manifest["database"]).name != manifest["database"]:
            raise ValueError
        return {"missing": [], **manifest}
    except (OSError, ValueError, KeyError, TypeError):
        raise SutureError(
            "backup.unknown", "this is not a backup that this hub can read", where=str(folder), hint="name its folder"
        ) from None
