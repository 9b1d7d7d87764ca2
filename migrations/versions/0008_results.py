"""a job may publish more than one revision: one more with every late answer."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("revisions") as batch:
        batch.drop_constraint(op.f("uq_revisions_job_id"), type_="unique")
        batch.create_index(op.f("ix_revisions_job_id"), ["job_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("revisions") as batch:
        batch.drop_index(op.f("ix_revisions_job_id"))
        batch.create_unique_constraint(op.f("uq_revisions_job_id"), ["job_id"])
