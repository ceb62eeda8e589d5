"""Audits stand beside the samples."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of audits: what the final exit says of samples that early exits have answered."""
    op.create_table(
        "audits",
        sa.Column("device_id", sa.String(length=63), nullable=False),
        sa.Column("epoch", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("bundle", sa.String(length=64), nullable=False),
        sa.Column("operating_point", sa.String(length=63), nullable=False),
        sa.Column("exit", sa.Integer(), nullable=False),
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("final_exit", sa.Integer(), nullable=False),
        sa.Column("final_label", sa.Integer(), nullable=False),
        sa.Column("final_confidence", sa.Float(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "seq", name=op.f("pk_audits")),
    )
    op.create_index(op.f("ix_audits_recorded_at"), "audits", ["recorded_at"])
