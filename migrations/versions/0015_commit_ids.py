"""commits have ids of their own; those that were made before get theirs now."""

import hashlib
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_COMMITS = sa.table(
    "commits",
    sa.column("id", sa.Integer),
    sa.column("model_id", sa.Integer),
    sa.column("parent_id", sa.Integer),
    sa.column("revision_id", sa.Integer),
    sa.column("oid", sa.String(40)),
    sa.column("title", sa.String),
    sa.column("message", sa.Text),
    sa.column("created_at", database.UtcDateTime(timezone=True)),
    sa.column("created_by", sa.String),
)
_REVISIONS = sa.table("revisions", sa.column("id", sa.Integer), sa.column("revision", sa.String(40)))


def upgrade() -> None:
    op.add_column("commits", sa.Column("oid", sa.String(40), nullable=True))
    connection = op.get_bind()
    statement = sa.select(_COMMITS, _REVISIONS.c.revision.label("tree"))
    statement = statement.join(_REVISIONS, _REVISIONS.c.id == _COMMITS.c.revision_id).order_by(_COMMITS.c.id)
    known: dict[int, str] = {}
    # A commit comes after its parent.
    for row in connection.execute(statement).all():
        parent = known.get(row.parent_id) if row.parent_id is not None else None
        known[row.id] = _id(row.model_id, parent, row.tree, row.created_by, row.created_at, row.title, row.message)
    update = sa.update(_COMMITS).where(_COMMITS.c.id == sa.bindparam("which")).values(oid=sa.bindparam("new"))
    if known:
        connection.execute(update, [{"which": key, "new": oid} for key, oid in known.items()])
    with op.batch_alter_table("commits") as batch:
        batch.alter_column("oid", existing_type=sa.String(40), nullable=False)
        batch.create_unique_constraint(op.f("uq_commits_model_id_oid"), ["model_id", "oid"])


def downgrade() -> None:
    with op.batch_alter_table("commits") as batch:
        batch.drop_constraint(op.f("uq_commits_model_id_oid"), type_="unique")
        batch.drop_column("oid")


def _id(model_id: int, parent: str | None, tree: str, author: str, moment: datetime, title: str, message: str) -> str:
    lines = [f"repository {model_id}", f"parent {parent or ''}", f"tree {tree}", f"author {author}"]
    text = "\n".join([*lines, f"time {moment.astimezone(UTC).isoformat()}", "", title, "", message])
    return hashlib.sha256(text.encode()).hexdigest()[:40]
