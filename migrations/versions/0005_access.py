"""tokens expire, gated models are asked for, parties have quotas."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("tokens") as batch:
        batch.add_column(sa.Column("expires_at", database.UtcDateTime(timezone=True), nullable=True))
    with op.batch_alter_table("parties") as batch:
        batch.add_column(sa.Column("max_bytes", sa.BigInteger(), nullable=True))
    op.create_table(
        "access_requests",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("requested_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("decided_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(length=200), nullable=True),
        sa.Column("expires_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_access_requests_model_id_models")),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_access_requests_party_id_parties")),
        sa.PrimaryKeyConstraint("model_id", "party_id", name=op.f("pk_access_requests")),
    )
    op.create_index(op.f("ix_access_requests_party_id"), "access_requests", ["party_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_access_requests_party_id"), table_name="access_requests")
    op.drop_table("access_requests")
    with op.batch_alter_table("parties") as batch:
        batch.drop_column("max_bytes")
    with op.batch_alter_table("tokens") as batch:
        batch.drop_column("expires_at")
