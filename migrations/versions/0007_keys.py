"""parties have public keys, revisions are signed and withdrawn, and know what they were made of."""

import json

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "party_keys",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("revoked_at", database.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_by", sa.String(length=200), nullable=True),
        sa.Column("revoked_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_party_keys_party_id_parties")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_party_keys")),
        sa.UniqueConstraint("party_id", "fingerprint", name=op.f("uq_party_keys_party_id_fingerprint")),
    )
    with op.batch_alter_table("revisions") as batch:
        batch.add_column(sa.Column("key_id", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("withdrawn_at", database.UtcDateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("withdrawn_by", sa.String(length=200), nullable=True))
        batch.add_column(sa.Column("withdrawn_reason", sa.Text(), nullable=True))
        batch.create_foreign_key(op.f("fk_revisions_key_id_party_keys"), "party_keys", ["key_id"], ["id"])
        batch.create_index(op.f("ix_revisions_key_id"), ["key_id"], unique=False)
    members = op.create_table(
        "revision_members",
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("member_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["revision_id"], ["revisions.id"], name=op.f("fk_revision_members_revision_id_revisions")
        ),
        sa.ForeignKeyConstraint(["member_id"], ["revisions.id"], name=op.f("fk_revision_members_member_id_revisions")),
        sa.PrimaryKeyConstraint("revision_id", "member_id", name=op.f("pk_revision_members")),
    )
    op.create_index(op.f("ix_revision_members_member_id"), "revision_members", ["member_id"], unique=False)
    _link_what_is_there(members)


def _link_what_is_there(members: sa.Table) -> None:
    connection = op.get_bind()
    found = connection.execute(
        sa.text(
            """
            SELECT revisions.id, revisions.revision, revisions.metadata, parties.name AS party, models.name AS model
            FROM revisions JOIN models ON models.id = revisions.model_id JOIN parties ON parties.id = models.party_id
            ORDER BY models.deleted_at IS NULL, revisions.id
            """
        )
    ).all()
    # A deleted model is called `name~id`.
    known = {(f"{row.party}/{row.model.partition('~')[0]}", row.revision): row.id for row in found}
    rows = []
    for row in found:
        content = json.loads(row.metadata) if isinstance(row.metadata, str) else row.metadata
        named = ((content or {}).get("lineage") or {}).get("members", ())
        linked = (known.get((member["repo"], member["revision"])) for member in named)
        rows += [{"revision_id": row.id, "member_id": member} for member in dict.fromkeys(linked) if member is not None]
    if rows:
        connection.execute(sa.insert(members), rows)


def downgrade() -> None:
    op.drop_index(op.f("ix_revision_members_member_id"), table_name="revision_members")
    op.drop_table("revision_members")
    with op.batch_alter_table("revisions") as batch:
        batch.drop_index(op.f("ix_revisions_key_id"))
        batch.drop_constraint(op.f("fk_revisions_key_id_party_keys"), type_="foreignkey")
        batch.drop_column("withdrawn_reason")
        batch.drop_column("withdrawn_by")
        batch.drop_column("withdrawn_at")
        batch.drop_column("key_id")
    op.drop_table("party_keys")
