"""Late labels stand beside the samples."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of labels, and the index by which they find samples that they name by `source_id`."""
    op.create_table(
        "labels",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("epoch", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("source_id", sa.String(length=256), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("told_at", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "seq", "source_id", "model", name=op.f("pk_labels")),
    )
    has_source = sa.text("source_id IS NOT NULL")
    op.create_index(
        "ix_predictions_source",
        "predictions",
        ["device_id", "source_id"],
        sqlite_where=has_source,
        postgresql_where=has_source,
    )
