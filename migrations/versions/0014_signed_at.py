"""when a revision was signed, as its signature says."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("revisions", sa.Column("signed_at", database.UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("revisions") as batch:
        batch.drop_column("signed_at")
