"""the files of a revision lie in parts that revisions of a model share."""

import hashlib
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_PATH = sa.String(1024).with_variant(sa.String(1024, collation="C"), "postgresql")
_AVERAGE, _MOST = 32, 128
_FILE = "name", "size", "sha256", "git_oid"
_REVISIONS = sa.table("revisions", *(sa.column(name) for name in ("id", "model_id", "purge_id")))
_OLD = sa.table("revision_files", sa.column("revision_id", sa.Integer), *(sa.column(name) for name in _FILE))
_FILES = sa.table("tree_files", sa.column("part_id", sa.Integer), *(sa.column(name) for name in _FILE))
_PARTS = sa.table("tree_parts", sa.column("id"), sa.column("model_id"), sa.column("digest"))
_OF_REVISIONS = sa.table("revision_parts", sa.column("revision_id"), sa.column("last"), sa.column("part_id"))


def upgrade() -> None:
    op.create_table(
        "tree_parts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_tree_parts_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tree_parts")),
        sa.UniqueConstraint("model_id", "digest", name=op.f("uq_tree_parts_model_id_digest")),
    )
    op.create_table(
        "revision_parts",
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("last", _PATH, nullable=False),
        sa.Column("part_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["part_id"], ["tree_parts.id"], name=op.f("fk_revision_parts_part_id_tree_parts")),
        _of_revisions("fk_revision_parts_revision_id_revisions"),
        sa.PrimaryKeyConstraint("revision_id", "last", name=op.f("pk_revision_parts")),
    )
    op.create_index(op.f("ix_revision_parts_part_id"), "revision_parts", ["part_id"])
    op.create_table(
        "tree_files",
        sa.Column("part_id", sa.Integer(), nullable=False),
        sa.Column("name", _PATH, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("git_oid", sa.String(40), nullable=True),
        sa.ForeignKeyConstraint(["part_id"], ["tree_parts.id"], name=op.f("fk_tree_files_part_id_tree_parts")),
        sa.PrimaryKeyConstraint("part_id", "name", name=op.f("pk_tree_files")),
    )
    op.create_index(op.f("ix_tree_files_sha256"), "tree_files", ["sha256"])
    _divide(op.get_bind())
    op.drop_table("revision_files")


def downgrade() -> None:
    op.create_table(
        "revision_files",
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("git_oid", sa.String(40), nullable=True),
        _of_revisions("fk_revision_files_revision_id_revisions"),
        sa.PrimaryKeyConstraint("revision_id", "name", name=op.f("pk_revision_files")),
    )
    op.create_index(op.f("ix_revision_files_sha256"), "revision_files", ["sha256"])
    columns = [_FILES.c[name] for name in _FILE]
    joined = sa.select(_OF_REVISIONS.c.revision_id, *columns).join(_FILES, _FILES.c.part_id == _OF_REVISIONS.c.part_id)
    op.get_bind().execute(sa.insert(_OLD).from_select(["revision_id", *_FILE], joined))
    for table in ("tree_files", "revision_parts", "tree_parts"):
        op.drop_table(table)


def _of_revisions(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["revision_id"], ["revisions.id"], name=op.f(name))


def _divide(connection: sa.Connection) -> None:
    """Write every revision's files into parts; a part that a model has already is written once."""
    known: dict[tuple[int, str], int] = {}
    for found in connection.execute(sa.select(_REVISIONS).order_by(_REVISIONS.c.id)).all():
        old = sa.select(*(_OLD.c[name] for name in _FILE)).where(_OLD.c.revision_id == found.id)
        # By the numbers of the characters, whatever the database's order is.
        for run in _runs(sorted(connection.execute(old).all(), key=lambda file: file.name)):
            # What is left of a purged one shares nothing: its content is gone.
            emptied = hashlib.sha256(f"emptied {found.id}".encode()).hexdigest()
            key = found.model_id, emptied if found.purge_id else _digest(run)
            if key not in known:
                known[key] = len(known) + 1
                part = {"id": known[key], "model_id": found.model_id, "digest": key[1]}
                connection.execute(sa.insert(_PARTS), [part])
                connection.execute(sa.insert(_FILES), [{"part_id": known[key], **file._mapping} for file in run])
            of_revision = {"revision_id": found.id, "last": run[-1].name, "part_id": known[key]}
            connection.execute(sa.insert(_OF_REVISIONS), [of_revision])
    if connection.dialect.name == "postgresql" and known:
        connection.execute(sa.text("SELECT setval('tree_parts_id_seq', :last)"), {"last": len(known)})


def _runs(files: list[sa.Row]) -> Iterator[list[sa.Row]]:
    run = []
    for file in files:
        run.append(file)
        if len(run) == _MOST or hashlib.sha256(file.name.encode()).digest()[0] % _AVERAGE == 0:
            yield run
            run = []
    if run:
        yield run


def _digest(run: list[sa.Row]) -> str:
    lines = "".join(f"{file.name}\0{file.sha256}\0{file.size}\0{file.git_oid or ''}\n" for file in run)
    return hashlib.sha256(lines.encode()).hexdigest()
