"""models are searched in one text, which PostgreSQL indexes by its runs of three characters."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# What the extension pg_trgm would do, which many servers lack and only some users may install.
_TRIGRAMS = """
CREATE FUNCTION suture_trigrams(text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(DISTINCT substr($1, first, 3)), '{}') FROM generate_series(1, length($1) - 2) AS first
$$
"""


def upgrade() -> None:
    op.add_column("models", sa.Column("search_text", sa.Text(), nullable=False, server_default=""))
    _describe_what_is_there()
    with op.batch_alter_table("models") as batch:
        batch.alter_column("search_text", server_default=None)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_TRIGRAMS)
        # At once, not gathered in a list that each search would read: models are searched far more than published.
        index = (
            "CREATE INDEX ix_models_search ON models USING gin (suture_trigrams(search_text)) WITH (fastupdate = off)"
        )
        op.execute(index)


def _describe_what_is_there() -> None:
    connection = op.get_bind()
    found = connection.execute(
        sa.text(
            "SELECT models.id, parties.name AS party, models.name, models.description FROM models "
            "JOIN parties ON parties.id = models.party_id"
        )
    ).all()
    for row in found:
        text = f"{_folded(f'{row.party}/{row.name}')}\n{_folded(row.description)}"
        connection.execute(
            sa.text("UPDATE models SET search_text = :text WHERE id = :id"), {"text": text, "id": row.id}
        )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP INDEX ix_models_search")
        op.execute("DROP FUNCTION suture_trigrams(text)")
    with op.batch_alter_table("models") as batch:
        batch.drop_column("search_text")
