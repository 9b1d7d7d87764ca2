"""Comparing the database with the store, both ways."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import timedelta

from suture_service.database import Database, telling_of_database
from suture_service.errors import Unavailable
from suture_service.hub import utc_now
from suture_service.maintenance.collection import GRACE
from suture_service.maintenance.progress import OnProgress, ignore
from suture_service.models.references import referenced
from suture_service.settings import Settings
from suture_service.storage import BlobStore, open_store


@dataclass(frozen=True)
class Comparison:
    """What does not fit, as digests: `missing`, `wrong_size` and `damaged` are referred to, `orphaned` are not.

    `referred` and `stored` are how many there are of each in all. `damaged` is None where the content was not read.
    """

    referred: int
    stored: int
    missing: list[str]
    wrong_size: list[str]
    damaged: list[str] | None
    orphaned: list[str]
    orphaned_bytes: int

    @property
    def sound(self) -> bool:
        """Whether all that the database refers to is there; orphans take room and nothing else."""
        return not (self.missing or self.wrong_size or self.damaged)


@telling_of_database()
def reconcile(
    settings: Settings, *, deep: bool = False, grace: timedelta = GRACE, on_progress: OnProgress = ignore
) -> Comparison:
    """Compare what the rows refer to with what the store holds; with `deep` read and hash all of it. Changes nothing.

    Safe while hubs run: what seems missing is asked for again, and what came within `grace` is no orphan yet.
    """
    horizon = utc_now() - grace
    store, database = open_store(settings), Database(settings.database_url)
    try:
        with database.reading() as session:
            wanted = referenced(session)
        on_progress("blobs", 0, len(wanted))
        stored = dict(store.list())
        lost = [digest for digest in wanted if digest not in stored]
        old = [digest for digest, blob in stored.items() if digest not in wanted and blob.modified < horizon]
        wrong = [digest for digest, size in wanted.items() if digest in stored and stored[digest].size != size]
        damaged = asyncio.run(_damaged(store, wanted, {*lost, *wrong}, on_progress)) if deep else None
        with database.reading() as session:
            now = referenced(session, {*lost, *old, *wrong, *(damaged or ())})
        sizes = store.sizes(digest for digest in lost if digest in now)
        orphaned = sorted(digest for digest in old if digest not in now)
        return Comparison(
            referred=len(wanted),
            stored=len(stored),
            missing=sorted(digest for digest, size in sizes.items() if size is None),
            wrong_size=sorted(digest for digest in wrong if digest in now),
            damaged=sorted(digest for digest in damaged if digest in now) if damaged is not None else None,
            orphaned=orphaned,
            orphaned_bytes=sum(stored[digest].size for digest in orphaned),
        )
    finally:
        database.close()


async def _damaged(store: BlobStore, wanted: dict[str, int], known: set[str], on_progress: OnProgress) -> list[str]:
    damaged, done = [], 0
    total = sum(size for digest, size in wanted.items() if digest not in known)
    for digest, size in wanted.items():
        if digest in known:
            continue
        content = hashlib.sha256()
        try:
            async for chunk in await store.stream(digest, 0, size):
                content.update(chunk)
                done += len(chunk)
                on_progress("bytes", done, total)
        except Unavailable as error:
            if error.code != "store.missing":
                raise
        if content.hexdigest() != digest:
            damaged.append(digest)
    return damaged
