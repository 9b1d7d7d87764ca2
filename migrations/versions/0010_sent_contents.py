"""what parties send counts before anything refers to it; revisions tell how many parameters they have."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sent_contents",
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_sent_contents_party_id_parties")),
        sa.PrimaryKeyConstraint("party_id", "sha256", name=op.f("pk_sent_contents")),
    )
    op.add_column("revisions", sa.Column("safetensors", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("revisions") as batch:
        batch.drop_column("safetensors")
    op.drop_table("sent_contents")
