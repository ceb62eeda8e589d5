"""Evaluations of trained models."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """There were none."""
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("training", sa.String(length=40), nullable=True),
        sa.Column("bundle", sa.String(length=64), nullable=True),
        sa.Column("operating_point", sa.String(length=63), nullable=True),
        sa.Column("stream_id", sa.String(length=63), nullable=False),
        sa.Column("announcement", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], name=op.f("fk_evaluations_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
