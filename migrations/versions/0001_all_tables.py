"""all tables."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "parties",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parties")),
        sa.UniqueConstraint("name", name=op.f("uq_parties_name")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("requester_id", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("dataset", sa.String(length=96), nullable=False),
        sa.Column("publish_as", sa.String(length=96), nullable=False),
        sa.Column("evaluate_at", sa.JSON(), nullable=False),
        sa.Column("evaluate_within", sa.Integer(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("answer_by", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.String(length=96), nullable=True),
        sa.Column("error_correlation_id", sa.String(length=64), nullable=True),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["requester_id"], ["parties.id"], name=op.f("fk_jobs_requester_id_parties")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_requester_id_created_at", "jobs", ["requester_id", "created_at"], unique=False)
    op.create_index("ix_jobs_state_answer_by", "jobs", ["state", "answer_by"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_models_party_id_parties")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("party_id", "name", name=op.f("uq_models_party_id_name")),
    )
    op.create_table(
        "sites",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_sites_party_id_parties")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sites")),
        sa.UniqueConstraint("party_id", "name", name=op.f("uq_sites_party_id_name")),
    )
    op.create_table(
        "model_shares",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_shares_model_id_models")),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_model_shares_party_id_parties")),
        sa.PrimaryKeyConstraint("model_id", "party_id", name=op.f("pk_model_shares")),
    )
    op.create_table(
        "revisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.String(length=40), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_revisions_job_id_jobs")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_revisions_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revisions")),
        sa.UniqueConstraint("job_id", name=op.f("uq_revisions_job_id")),
        sa.UniqueConstraint("model_id", "revision", name=op.f("uq_revisions_model_id_revision")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.String(length=96), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("site_id", sa.Integer(), nullable=True),
        sa.Column("lease_expires_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.String(length=96), nullable=True),
        sa.Column("correlation_id", sa.String(length=64), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_tasks_job_id_jobs")),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_tasks_party_id_parties")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_tasks_site_id_sites")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("job_id", "position", name=op.f("uq_tasks_job_id_position")),
    )
    op.create_index("ix_tasks_party_id_state_created_at", "tasks", ["party_id", "state", "created_at"], unique=False)
    op.create_index("ix_tasks_state_lease_expires_at", "tasks", ["state", "lease_expires_at"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("site_id", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(length=96), nullable=True),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_tokens_party_id_parties")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_tokens_site_id_sites")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_tokens_secret_sha256")),
    )
    op.create_index(op.f("ix_tokens_party_id"), "tokens", ["party_id"], unique=False)
    op.create_index(op.f("ix_tokens_site_id"), "tokens", ["site_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("task_id", sa.String(length=40), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_events_task_id_tasks")),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "job_members",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_members_job_id_jobs")),
        sa.ForeignKeyConstraint(["revision_id"], ["revisions.id"], name=op.f("fk_job_members_revision_id_revisions")),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_job_members")),
    )
    op.create_table(
        "revision_files",
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["revision_id"], ["revisions.id"], name=op.f("fk_revision_files_revision_id_revisions")
        ),
        sa.PrimaryKeyConstraint("revision_id", "name", name=op.f("pk_revision_files")),
    )
    op.create_table(
        "task_files",
        sa.Column("task_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_files_task_id_tasks")),
        sa.PrimaryKeyConstraint("task_id", "name", name=op.f("pk_task_files")),
    )


def downgrade() -> None:
    op.drop_table("task_files")
    op.drop_table("revision_files")
    op.drop_table("job_members")
    op.drop_table("events")
    op.drop_index(op.f("ix_tokens_site_id"), table_name="tokens")
    op.drop_index(op.f("ix_tokens_party_id"), table_name="tokens")
    op.drop_table("tokens")
    op.drop_index("ix_tasks_state_lease_expires_at", table_name="tasks")
    op.drop_index("ix_tasks_party_id_state_created_at", table_name="tasks")
    op.drop_table("tasks")
    op.drop_table("revisions")
    op.drop_table("model_shares")
    op.drop_table("sites")
    op.drop_table("models")
    op.drop_index("ix_jobs_state_answer_by", table_name="jobs")
    op.drop_index("ix_jobs_requester_id_created_at", table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("parties")
