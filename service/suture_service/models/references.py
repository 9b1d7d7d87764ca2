"""Which blobs the database refers to, and the rule that no referred one is ever collected.

The columns are found from the tables themselves: each of type `BlobDigest`, with the size in `size` beside it.

The rule. A transaction that adds a reference takes the collection lock shared and then looks whether the store holds
the content; a collection takes it alone, asks again which blobs are referred to and how old they are, and removes the
others before it lets go. So a commit either finds its content and keeps it, or is refused and adds nothing. Content
that was kept and is not referred to yet is protected by its age: keeping it again makes it new.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, not_, select, text
from sqlalchemy import inspect as mapping
from sqlalchemy.orm import Mapper, Session

from suture_service.database import Base, Database, portions
from suture_service.errors import Unavailable
from suture_service.models.repository import keeps_files
from suture_service.models.trees import parts_of_models
from suture_service.storage import BlobStore
from suture_service.tables import BlobDigest, TreeFile

#: Any number that no other lock of the hub has.
_LOCK = 0x53757475


def blob_columns() -> list[Column[str]]:
    """Return all columns that name blobs."""
    return [column for table in Base.metadata.tables.values() for column in _blob_columns(table)]


def referenced(
    connection: Connection | Session,
    digests: Collection[str] | None = None,
    *,
    without: Mapping[type[Base], ColumnElement[bool]] | None = None,
) -> dict[str, int]:
    """Return size in bytes by digest of every blob that is referred to, or of those among `digests`.

    Rows count as gone where the condition that `without` has for their class holds.
    """
    gone = {row.__table__: condition for row, condition in (without or {}).items()}
    sizes: dict[str, int] = {}
    for column in blob_columns():
        query = select(column, column.table.c.size).distinct()
        if column.table is TreeFile.__table__:
            # A deleted model's rows stay, for the lineage of others.
            query = query.where(TreeFile.part_id.in_(parts_of_models(keeps_files())))
        if column.table in gone:
            query = query.where(not_(gone[column.table]))
        for part in _parts(digests):
            rows = connection.execute(query if part is None else query.where(column.in_(part)))
            sizes.update((sha256, size) for sha256, size in rows)
    return sizes


def lock_out_commits(session: Session) -> None:
    """Until the transaction ends, no other one adds a reference."""
    # On SQLite, a writing transaction is alone anyway.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def refuse_lost_references(database: Database, store: BlobStore) -> None:
    """From now on, a transaction that refers to content that the store does not hold fails (`store.missing`)."""

    def look(session: Session, _context: Any, _instances: Any) -> None:
        added = {
            digest: row.size
            for row in (*session.new, *session.dirty)
            for name in _blob_attributes(mapping(row).mapper)
            for digest in mapping(row).attrs[name].history.added or ()
        }
        if not added:
            return
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _LOCK})
        for digest, size in store.sizes(added).items():
            if size != added[digest]:
                raise Unavailable(
                    "store.missing", "the hub does not hold this content any more", where=digest, hint="send it again"
                )

    database.before_flush(look)


def _blob_columns(table: Table) -> list[Column[str]]:
    return [column for column in table.columns if isinstance(column.type, BlobDigest)]


@cache
def _blob_attributes(mapper: Mapper[Any]) -> tuple[str, ...]:
    return tuple(
        attribute.key for attribute in mapper.column_attrs if isinstance(attribute.columns[0].type, BlobDigest)
    )


def _parts(digests: Collection[str] | None) -> Iterator[Sequence[str] | None]:
    if digests is None:
        yield None
        return
    yield from portions(list(digests))
