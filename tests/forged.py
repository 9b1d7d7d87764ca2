"""A hub whose database somebody else has got at: it shows revisions that their owner never published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from secrets import token_hex

from sqlalchemy import select
from sqlalchemy.orm import Session

from suture_service.database import Database
from suture_service.models.repository import own_model
from suture_service.models.service import revision_id
from suture_service.models.trees import StoredFile, set_files
from suture_service.settings import Settings
from suture_service.storage.blobs import BlobStore, open_store
from suture_service.tables import Commit, Model, Party, Ref, Revision


def forge(settings: Settings, repo: str, files: Mapping[str, bytes], metadata: dict[str, object] | None = None) -> str:
    """Make `main` of a model hold these files, past all checks, and return the revision's id.

    `metadata` is what the hub says of the model; what the files say by default.
    """
    stored = asyncio.run(_store(open_store(settings), files))
    with _writing(settings) as session:
        model = _model(session, repo)
        revision = Revision(
            model=model,
            revision=revision_id(stored),
            created_at=datetime.now(UTC),
            created_by=model.party.name,
            content=metadata or json.loads(files["suture.json"]),
        )
        set_files(session, revision, stored)
        _put_on_main(session, model, revision)
        return revision.revision


def show(settings: Settings, repo: str, revision: str) -> None:
    """Make `main` of a model be one of its revisions, as old as it may be."""
    with _writing(settings) as session:
        model = _model(session, repo)
        wanted = Revision.model_id == model.id, Revision.revision == revision
        _put_on_main(session, model, session.scalars(select(Revision).where(*wanted)).one())


def rename(settings: Settings, party: str, name: str) -> None:
    """Call a party by another name."""
    with _writing(settings) as session:
        session.scalars(select(Party).where(Party.name == party)).one().name = name


def _model(session: Session, repo: str) -> Model:
    party, _, name = repo.partition("/")
    model = own_model(session, session.scalars(select(Party).where(Party.name == party)).one().id, name)
    assert model is not None
    return model


def _put_on_main(session: Session, model: Model, revision: Revision) -> None:
    commit = Commit(
        model_id=model.id,
        revision=revision,
        oid=token_hex(20),
        title="forged",
        created_at=datetime.now(UTC),
        created_by=model.party.name,
    )
    session.add(commit)
    session.flush()
    session.get_one(Ref, (model.id, "branch", "main")).commit = commit


@contextmanager
def _writing(settings: Settings) -> Iterator[Session]:
    database = Database(settings.database_url)
    try:
        with database.writing() as session:
            yield session
    finally:
        database.close()


async def _store(store: BlobStore, files: Mapping[str, bytes]) -> dict[str, StoredFile]:
    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        yield content

    stored = {}
    for name, content in files.items():
        async with store.receive(chunks(content), limit=2**30, where=name) as upload:
            await upload.keep()
            stored[name] = StoredFile(upload.sha256, upload.size)
    return stored
