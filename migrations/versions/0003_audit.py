"""the audit log."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("party", sa.String(length=96), nullable=True),
        sa.Column("token_id", sa.String(length=40), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=300), nullable=False),
        sa.Column("owner", sa.String(length=96), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_party", "audit", ["party", "id"], unique=False)
    op.create_index("ix_audit_owner", "audit", ["owner", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_audit_owner", table_name="audit")
    op.drop_index("ix_audit_party", table_name="audit")
    op.drop_table("audit")
