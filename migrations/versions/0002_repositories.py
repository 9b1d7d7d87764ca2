"""repositories have commits, branches and tags."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models") as batch:
        batch.alter_column("name", existing_type=sa.String(length=96), type_=sa.String(length=120))
        batch.add_column(sa.Column("gated", sa.String(length=16), nullable=False, server_default=""))
        batch.add_column(sa.Column("deleted_at", database.UtcDateTime(timezone=True), nullable=True))
    with op.batch_alter_table("revisions") as batch:
        batch.alter_column("metadata", existing_type=sa.JSON(), type_=sa.JSON(none_as_null=True), nullable=True)
        batch.add_column(sa.Column("card", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("revision_files") as batch:
        batch.alter_column("name", existing_type=sa.String(length=96), type_=sa.String(length=1024))
        batch.add_column(sa.Column("git_oid", sa.String(length=40), nullable=True))
        batch.create_index(op.f("ix_revision_files_sha256"), ["sha256"], unique=False)
    op.create_table(
        "commits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=500), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_commits_model_id_models")),
        sa.ForeignKeyConstraint(["parent_id"], ["commits.id"], name=op.f("fk_commits_parent_id_commits")),
        sa.ForeignKeyConstraint(["revision_id"], ["revisions.id"], name=op.f("fk_commits_revision_id_revisions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commits")),
    )
    op.create_index(op.f("ix_commits_model_id"), "commits", ["model_id"], unique=False)
    op.create_index(op.f("ix_commits_revision_id"), "commits", ["revision_id"], unique=False)
    op.create_table(
        "refs",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("commit_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["commit_id"], ["commits.id"], name=op.f("fk_refs_commit_id_commits")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_refs_model_id_models")),
        sa.PrimaryKeyConstraint("model_id", "kind", "name", name=op.f("pk_refs")),
    )
    op.create_table(
        "model_tags",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_tags_model_id_models")),
        sa.PrimaryKeyConstraint("model_id", "tag", name=op.f("pk_model_tags")),
    )
    op.create_index("ix_model_tags_tag", "model_tags", ["tag", "model_id"], unique=False)
    op.create_table(
        "received_files",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_received_files_model_id_models")),
        sa.PrimaryKeyConstraint("model_id", "sha256", name=op.f("pk_received_files")),
    )
    op.create_table(
        "hub_keys",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hub_keys")),
    )
    _give_old_revisions_a_history()


def _give_old_revisions_a_history() -> None:
    """Until now a model was the list of its revisions: each becomes a commit with the revision's own number."""
    op.execute(
        """
        INSERT INTO commits (id, model_id, parent_id, revision_id, title, message, created_at, created_by)
        SELECT id, model_id,
               (SELECT MAX(earlier.id) FROM revisions AS earlier
                WHERE earlier.model_id = revisions.model_id AND earlier.id < revisions.id),
               id, CASE WHEN job_id IS NULL THEN 'Publish' ELSE 'Result of ' || job_id END, '', created_at, created_by
        FROM revisions ORDER BY id
        """
    )
    op.execute(
        """
        INSERT INTO refs (model_id, kind, name, commit_id)
        SELECT model_id, 'branch', 'main', MAX(id) FROM commits GROUP BY model_id
        """
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SELECT setval('commits_id_seq', (SELECT COALESCE(MAX(id), 0) + 1 FROM commits), false)")


def downgrade() -> None:
    op.drop_table("hub_keys")
    op.drop_table("received_files")
    op.drop_index("ix_model_tags_tag", table_name="model_tags")
    op.drop_table("model_tags")
    op.drop_table("refs")
    op.drop_index(op.f("ix_commits_revision_id"), table_name="commits")
    op.drop_index(op.f("ix_commits_model_id"), table_name="commits")
    op.drop_table("commits")
    # Nor can it be told that a repository was deleted.
    op.execute("DELETE FROM model_shares WHERE model_id IN (SELECT id FROM models WHERE deleted_at IS NOT NULL)")
    op.execute("UPDATE models SET visibility = 'private' WHERE deleted_at IS NOT NULL")
    # Without branches, only repositories that hold portable models and nothing else can be told.
    op.execute("DELETE FROM revision_files WHERE revision_id IN (SELECT id FROM revisions WHERE metadata IS NULL)")
    op.execute("DELETE FROM revisions WHERE metadata IS NULL")
    op.execute("DELETE FROM model_shares WHERE model_id NOT IN (SELECT model_id FROM revisions)")
    op.execute("DELETE FROM models WHERE id NOT IN (SELECT model_id FROM revisions)")
    with op.batch_alter_table("revision_files") as batch:
        batch.drop_index(op.f("ix_revision_files_sha256"))
        batch.drop_column("git_oid")
        batch.alter_column("name", existing_type=sa.String(length=1024), type_=sa.String(length=96))
    with op.batch_alter_table("revisions") as batch:
        batch.drop_column("card")
        batch.alter_column("metadata", existing_type=sa.JSON(), nullable=False)
    with op.batch_alter_table("models") as batch:
        batch.drop_column("deleted_at")
        batch.drop_column("gated")
        batch.alter_column("name", existing_type=sa.String(length=120), type_=sa.String(length=96))
