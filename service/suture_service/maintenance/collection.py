"""Garbage collection: removing what the store holds and no row refers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select

from suture_service import operate
from suture_service.database import Database, portions, telling_of_database
from suture_service.hf.xet import service as xet
from suture_service.hub import utc_now
from suture_service.jobs.repository import kept_long_enough
from suture_service.maintenance.progress import OnProgress, ignore
from suture_service.models.references import lock_out_commits, referenced
from suture_service.purges import service as purges
from suture_service.settings import Settings
from suture_service.storage import BlobStore, open_store
from suture_service.tables import ReceivedFile, SentContent, TaskFile

#: How long content may wait for the commit that refers to it.
GRACE = timedelta(hours=24)
#: While one portion is removed, commits wait.
_PORTION = 200


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be: blobs and their bytes, temporary files, and permissions to name a sent file.

    `temporary` is None after a dry run: whether somebody still writes one shows when it is removed.
    """

    blobs: list[str]
    bytes: int
    temporary: int | None
    received: int


@telling_of_database()
def collect(
    settings: Settings, *, grace: timedelta = GRACE, dry_run: bool = False, on_progress: OnProgress = ignore
) -> Collected:
    """Remove blobs that no row refers to and that were kept longer than `grace` ago; safe while hubs run.

    A file that was sent for a commit which never came stops being referred to after the same time, and what the tasks
    of a job left long after its end. A purge that was broken off is finished. With `dry_run`, nothing changes, and rows
    that a collection removes first do not count: what is returned is what it would remove.
    """
    horizon = utc_now() - grace
    if not dry_run:
        with operate.running(settings) as hub:
            purges.finish_all(hub)
    store, database = open_store(settings), Database(settings.database_url)
    try:
        stale, forgotten = ReceivedFile.created_at < horizon, kept_long_enough()
        if dry_run:
            with database.reading() as session:
                received = session.scalar(select(func.count()).select_from(ReceivedFile).where(stale)) or 0
        else:
            with database.writing() as session:
                received = session.execute(delete(ReceivedFile).where(stale)).rowcount  # type: ignore[attr-defined]
                session.execute(delete(TaskFile).where(forgotten))
                # What is referred to counts by that; what is not goes now, or is gone.
                session.execute(delete(SentContent).where(SentContent.sent_at < horizon))
        old = {digest: blob.size for digest, blob in store.list() if blob.modified < horizon}
        with database.reading() as session:
            left = referenced(session, without={ReceivedFile: stale, TaskFile: forgotten})
        doomed = sorted(old.keys() - left.keys())
        if not dry_run:
            removed: list[str] = []
            for done, portion in enumerate(portions(doomed, _PORTION)):
                on_progress("blobs", done * _PORTION, len(doomed))
                with database.writing() as session:
                    lock_out_commits(session)
                    garbage = _still_doomed(portion, referenced(session, portion), store, horizon)
                    store.delete(garbage)
                    session.execute(delete(SentContent).where(SentContent.sha256.in_(garbage)))
                removed += garbage
            doomed = removed
        on_progress("blobs", len(doomed), len(doomed))
        temporary = None if dry_run else store.sweep() + xet.sweep(database, store, utc_now())
        return Collected(doomed, sum(old[digest] for digest in doomed), temporary, received)
    finally:
        database.close()


def _still_doomed(portion: Sequence[str], wanted: dict[str, int], store: BlobStore, horizon: datetime) -> list[str]:
    left = [digest for digest in portion if digest not in wanted]
    return [digest for digest, blob in store.find(left).items() if blob is not None and blob.modified < horizon]
