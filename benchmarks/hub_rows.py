"""Rows as a hub in use would have them, for `hub_api.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy import text as sql
from sqlalchemy.orm import Session

from suture_service import tables
from suture_service.auth import digest
from suture_service.database import Database
from suture_service.models.search import search_text

#: Tasks of a job; of each party, jobs whose first task is open.
TASKS, OPEN = 4, 90
_CHUNK = 5000


@dataclass(frozen=True)
class Size:
    """How many rows there are."""

    models: int
    parties: int
    tasks: int


def fill(url: str, size: Size) -> None:
    """Write rows as a hub in use would have them; party n's token is `token-n`, its site's `site-n`."""
    database, now = Database(url), datetime.now(UTC)
    parties, models, jobs = range(1, size.parties + 1), range(1, size.models + 1), range(size.tasks // TASKS)
    content = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [64, 64], "modality": "CT"}},
        "outputs": {"class": {"format": "logits", "num_channels": 2}},
        "labels": ["healthy", "ill"],
        "license": "Apache-2.0",
    }

    def owner(model: int) -> int:
        return model % size.parties + 1

    def described(model: int) -> str:
        # In one model, however many there are: an answer with more in it would cost more anyway.
        return f"Lesions in {'rare' if model == 1 else 'common'} slices"

    def at(number: int) -> datetime:
        return now - timedelta(seconds=10 * size.tasks - number)

    with database.writing() as session:
        add(session, tables.Party, [{"id": n, "name": f"party-{n}", "created_at": now} for n in parties])
        add(
            session,
            tables.Site,
            [{"id": n, "party_id": n, "name": "site", "created_at": now, "last_seen_at": now} for n in parties],
        )
        add(
            session,
            tables.Token,
            [
                {
                    "id": f"tok_{kind}{n}",
                    "party_id": n,
                    "site_id": n if kind == "site" else None,
                    "secret_sha256": digest(f"{kind}-{n}"),
                    "roles": ["reader", "requester"],
                    "created_at": now,
                    "last_used_at": now,
                }
                for n in parties
                for kind in ("token", "site")
            ],
        )
        add(
            session,
            tables.Model,
            [
                {
                    "id": n,
                    "party_id": owner(n),
                    "name": f"model-{n}",
                    # Of ten models one is its party's alone.
                    "visibility": "private" if n % 10 == 0 else "all",
                    "task": "classification",
                    "description": described(n),
                    "search_text": search_text(f"party-{owner(n)}/model-{n}", described(n)),
                    "training_n": n,
                    "created_at": at(n),
                    "updated_at": at(n),
                }
                for n in models
            ],
        )
        revisions = [hashlib.sha1(f"{n}".encode(), usedforsecurity=False).hexdigest() for n in models]
        add(
            session,
            tables.Revision,
            [
                {
                    "id": n,
                    "model_id": n,
                    "revision": revision,
                    "created_at": at(n),
                    "created_by": "x",
                    "content": content,
                }
                for n, revision in zip(models, revisions, strict=True)
            ],
        )
        add(
            session,
            tables.TreePart,
            [{"id": n, "model_id": n, "digest": hashlib.sha256(f"{n}".encode()).hexdigest()} for n in models],
        )
        add(
            session,
            tables.RevisionPart,
            [{"revision_id": n, "last": "suture.json", "part_id": n} for n in models],
        )
        add(
            session,
            tables.TreeFile,
            [
                {
                    "part_id": n,
                    "name": name,
                    "size": 81244,
                    "sha256": hashlib.sha256(f"{name}{n}".encode()).hexdigest(),
                }
                for n in models
                for name in ("model.safetensors", "suture.json")
            ],
        )
        add(
            session,
            tables.Commit,
            [
                {
                    "id": n,
                    "model_id": n,
                    "revision_id": n,
                    "oid": f"{n:040x}",
                    "title": "x",
                    "message": "",
                    "created_at": at(n),
                    "created_by": "x",
                }
                for n in models
            ],
        )
        add(session, tables.Ref, [{"model_id": n, "kind": "branch", "name": "main", "commit_id": n} for n in models])
        add(
            session,
            tables.ModelFacet,
            [{"model_id": n, "kind": "modality", "value": "mr" if n % 100 == 1 else "ct"} for n in models],
        )
        add(
            session,
            tables.ModelTag,
            [{"model_id": n, "tag": "rare" if n % 100 == 1 else "common"} for n in models],
        )
        done = len(jobs) - min(len(jobs) // 2, OPEN * size.parties)
        add(
            session,
            tables.Job,
            [
                {
                    "id": f"job_{n:016x}",
                    "requester_id": n % size.parties + 1,
                    "created_by": "x",
                    "state": "complete" if n < done else "fitting",
                    "dataset": "digits",
                    "publish_as": f"stitched-{n}",
                    "evaluate_at": [],
                    "contribute_from": [],
                    "evaluate_within": 86400,
                    "options": {},
                    "created_at": at(n),
                    "last_seq": 1,
                }
                for n in jobs
            ],
        )
        add(
            session,
            tables.Event,
            [{"job_id": f"job_{n:016x}", "seq": 1, "at": at(n), "kind": "job", "data": {"state": "x"}} for n in jobs],
        )
        add(
            session,
            tables.JobMember,
            [
                {"job_id": f"job_{n:016x}", "position": place, "revision_id": (n * 2 + place) % size.models + 1}
                for n in jobs
                for place in (0, 1)
            ],
        )
        add(
            session,
            tables.Task,
            [
                {
                    "id": f"task_{n:012x}{place:04x}",
                    "job_id": f"job_{n:016x}",
                    "position": place,
                    "kind": "fit" if place == 0 else "evaluate",
                    "party_id": n % size.parties + 1,
                    "dataset": "digits",
                    "state": "done" if n < done else "open" if place == 0 else "cancelled",
                    "attempt": 1,
                    "fence": 0,
                    "created_at": at(n),
                }
                for n in jobs
                for place in range(TASKS)
            ],
        )
        if database.engine.dialect.name == "postgresql":
            # Numbers were given by hand.
            for table in ("parties", "sites", "models", "revisions", "commits", "tree_parts"):
                session.execute(sql(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))"))
    if database.engine.dialect.name == "postgresql":
        with database.writing() as session:
            session.execute(sql("ANALYZE"))  # as autovacuum does; nobody does it for SQLite
    database.close()


def add(session: Session, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, some thousand at a time."""
    for start in range(0, len(rows), _CHUNK):
        session.execute(insert(table), rows[start : start + _CHUNK])
