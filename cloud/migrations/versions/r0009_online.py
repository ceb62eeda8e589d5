"""Jobs that learn on from a live stream, and the candidates that they propose; a training may be one of these."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was trained so far was trained for itself."""
    op.add_column("trainings", sa.Column("online", sa.String(40), nullable=True))
    op.create_table(
        "online_jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("training", sa.String(40), nullable=True),
        sa.Column("stream_id", sa.String(63), nullable=False),
        sa.Column("announcement", sa.JSON(), nullable=False),
        sa.Column("topics", sa.JSON(), nullable=False),
        sa.Column("consumers", sa.String(63), nullable=False),
        sa.Column("trained_on", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("partition", sa.JSON(), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], name="fk_online_jobs_id"),
        sa.PrimaryKeyConstraint("id", name="pk_online_jobs"),
    )
    op.create_table(
        "candidates",
        sa.Column("online", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("slices", sa.JSON(), nullable=False),
        sa.Column("told", sa.JSON(), nullable=False),
        sa.Column("proposed_at", sa.BigInteger(), nullable=False),
        sa.Column("training", sa.String(40), nullable=True),
        sa.Column("partition", sa.String(40), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["online"], ["online_jobs.id"], name="fk_candidates_online"),
        sa.PrimaryKeyConstraint("online", "number", name="pk_candidates"),
    )
