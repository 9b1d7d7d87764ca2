"""people sign in with an identity provider."""

import sqlalchemy as sa
from alembic import op

from suture_service import database

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("party_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("issuer", sa.String(length=500), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("created_at", database.UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_people_party_id_parties")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
        sa.UniqueConstraint("party_id", "name", name=op.f("uq_people_party_id_name")),
        sa.UniqueConstraint("issuer", "subject", "party_id", name=op.f("uq_people_issuer_subject_party_id")),
        sa.UniqueConstraint("issuer", "email", "party_id", name=op.f("uq_people_issuer_email_party_id")),
    )
    with op.batch_alter_table("tokens") as batch:
        batch.add_column(sa.Column("person_id", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("login_sha256", sa.String(length=64), nullable=True))
        batch.create_foreign_key(op.f("fk_tokens_person_id_people"), "people", ["person_id"], ["id"])
        batch.create_unique_constraint(op.f("uq_tokens_login_sha256"), ["login_sha256"])
        batch.create_index(op.f("ix_tokens_person_id"), ["person_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("tokens") as batch:
        batch.drop_index(op.f("ix_tokens_person_id"))
        batch.drop_constraint(op.f("uq_tokens_login_sha256"), type_="unique")
        batch.drop_constraint(op.f("fk_tokens_person_id_people"), type_="foreignkey")
        batch.drop_column("login_sha256")
        batch.drop_column("person_id")
    op.drop_table("people")
