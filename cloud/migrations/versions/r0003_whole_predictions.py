"""Predictions are kept whole, so that a device can be given one that did not reach it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add outputs (null: brought in before this step) and trace."""
    op.add_column("predictions", sa.Column("outputs", sa.LargeBinary(), nullable=True))
    op.add_column("predictions", sa.Column("trace", sa.String(length=256), nullable=True))
