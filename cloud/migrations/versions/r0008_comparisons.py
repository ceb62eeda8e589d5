"""Trainings that are to be compared have one id in common; a version of a model may come from a training."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was trained so far is compared with nothing, and what models there are were handed in."""
    op.add_column("trainings", sa.Column("comparison", sa.String(40), nullable=True))
    op.create_index("ix_trainings_comparison", "trainings", ["comparison"])
    op.add_column("model_versions", sa.Column("training", sa.String(40), nullable=True))
