"""models are found by what their suture.json says."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models") as batch:
        batch.add_column(sa.Column("training_n", sa.BigInteger(), nullable=True))
        batch.create_index("ix_models_created_at", ["created_at", "id"], unique=False)
        batch.create_index("ix_models_updated_at", ["updated_at", "id"], unique=False)
        batch.create_index(op.f("ix_models_training_n"), ["training_n"], unique=False)
    facets = op.create_table(
        "model_facets",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_facets_model_id_models")),
        sa.PrimaryKeyConstraint("model_id", "kind", "value", name=op.f("pk_model_facets")),
    )
    op.create_index("ix_model_facets_kind", "model_facets", ["kind", "value", "model_id"], unique=False)
    _describe_what_is_there(facets)


def _describe_what_is_there(facets: sa.Table) -> None:
    connection = op.get_bind()
    found = connection.execute(
        sa.text(
            """
            SELECT refs.model_id, revisions.metadata FROM refs
            JOIN commits ON commits.id = refs.commit_id JOIN revisions ON revisions.id = commits.revision_id
            WHERE refs.kind = 'branch' AND refs.name = 'main' AND revisions.metadata IS NOT NULL
            """
        )
    ).all()
    for model_id, text in found:
        content = json.loads(text) if isinstance(text, str) else text
        n = (content.get("training_data") or {}).get("n")
        if n is not None:
            statement = sa.text("UPDATE models SET training_n = :n WHERE id = :id")
            connection.execute(statement, {"n": min(n, 2**53), "id": model_id})
        rows = [{"model_id": model_id, "kind": kind, "value": value} for kind, value in _facets(content)]
        if rows:
            connection.execute(sa.insert(facets), rows)


def _facets(content: dict) -> list[tuple[str, str]]:
    told = [("license", content.get("license", ""))]
    for spec in content.get("inputs", {}).values():
        told += [("format", spec.get("format", "image")), ("num_channels", str(spec["num_channels"]))]
        told += [("spatial_dims", str(len(spec.get("spatial_shape", ())))), ("modality", spec.get("modality") or "")]
    told += [("label", label) for label in content.get("labels") or ()]
    folded = ((kind, " ".join(value.casefold().split())) for kind, value in told)
    return list(dict.fromkeys((kind, value) for kind, value in folded if 0 < len(value) <= 200))[:1000]


def downgrade() -> None:
    op.drop_index("ix_model_facets_kind", table_name="model_facets")
    op.drop_table("model_facets")
    with op.batch_alter_table("models") as batch:
        batch.drop_index(op.f("ix_models_training_n"))
        batch.drop_index("ix_models_updated_at")
        batch.drop_index("ix_models_created_at")
        batch.drop_column("training_n")
