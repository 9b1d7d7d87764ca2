"""purged content; parties and sites that are suspended or gone, and the names they had; quotas of jobs."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_MOMENT = database.UtcDateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "purges",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("repo", sa.String(length=300), nullable=False),
        sa.Column("path_sha256", sa.String(length=64), nullable=True),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revisions", sa.JSON(), nullable=False),
        sa.Column("digests", sa.JSON(), nullable=False),
        sa.Column("done_at", _MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_purges_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purges")),
    )
    op.create_index(op.f("ix_purges_model_id"), "purges", ["model_id"])
    with op.batch_alter_table("revisions") as batch:
        batch.add_column(sa.Column("purge_id", sa.String(length=40), nullable=True))
        batch.create_foreign_key(op.f("fk_revisions_purge_id_purges"), "purges", ["purge_id"], ["id"])
        batch.create_index(op.f("ix_revisions_purge_id"), ["purge_id"])
    op.create_table(
        "former_names",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("until", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_former_names_party_id_parties")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_former_names")),
    )
    op.create_index(op.f("ix_former_names_party_id"), "former_names", ["party_id"])
    op.add_column("parties", sa.Column("suspended_at", _MOMENT, nullable=True))
    op.add_column("parties", sa.Column("removed_at", _MOMENT, nullable=True))
    op.add_column("parties", sa.Column("max_jobs", sa.Integer(), nullable=True))
    op.add_column("sites", sa.Column("suspended_at", _MOMENT, nullable=True))
    op.add_column("sites", sa.Column("removed_at", _MOMENT, nullable=True))
    op.add_column("audit", sa.Column("redacted_by", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("audit", "redacted_by")
    for table, columns in {
        "sites": ("removed_at", "suspended_at"),
        "parties": ("max_jobs", "removed_at", "suspended_at"),
    }.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column)
    op.drop_table("former_names")
    with op.batch_alter_table("revisions") as batch:
        batch.drop_index(op.f("ix_revisions_purge_id"))
        batch.drop_constraint(op.f("fk_revisions_purge_id_purges"), type_="foreignkey")
        batch.drop_column("purge_id")
    op.drop_table("purges")
