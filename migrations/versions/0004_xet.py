"""large files may arrive in pieces."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "xet_epochs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_xet_epochs_model_id_models")),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name=op.f("fk_xet_epochs_token_id_tokens")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_xet_epochs")),
        sa.UniqueConstraint("model_id", "token_id", "day", name=op.f("uq_xet_epochs_model_id_token_id_day")),
    )
    op.create_table(
        "xet_xorbs",
        sa.Column("epoch_id", sa.String(length=40), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("layout", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["epoch_id"], ["xet_epochs.id"], name=op.f("fk_xet_xorbs_epoch_id_xet_epochs")),
        sa.PrimaryKeyConstraint("epoch_id", "hash", name=op.f("pk_xet_xorbs")),
    )


def downgrade() -> None:
    op.drop_table("xet_xorbs")
    op.drop_table("xet_epochs")
