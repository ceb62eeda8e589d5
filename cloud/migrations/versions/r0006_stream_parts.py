"""A stream may be announced in parts, by as many producers."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was announced so far is each the only part of its stream."""
    op.rename_table("streams", "streams_whole")
    op.create_table(
        "streams",
        sa.Column("stream_id", sa.String(63), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("announcement", sa.JSON(), nullable=False),
        sa.Column("announced_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream_id", "part", name="streams_parts"),
    )
    op.execute("INSERT INTO streams SELECT stream_id, 1, announcement, announced_at FROM streams_whole")
    op.drop_table("streams_whole")
