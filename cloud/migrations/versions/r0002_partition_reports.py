"""A partition keeps its report."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the sha256 of the report, an HTML page among the blobs."""
    op.add_column("partitions", sa.Column("report", sa.String(length=64), nullable=True))
