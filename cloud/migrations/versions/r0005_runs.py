"""A device runs several models, each with the revision that brought it; a rollout may come with bounds."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

devices = sa.table(
    "devices", sa.column("device_id", sa.String), sa.column("revision", sa.BigInteger), sa.column("desired", sa.JSON)
)


def upgrade() -> None:
    """Add the bounds of rollouts; what a device was told to run becomes the first of its runs."""
    op.add_column("rollouts", sa.Column("bounds", sa.JSON(), nullable=True))
    connection = op.get_bind()
    for row in connection.execute(sa.select(devices)).all():
        if row.desired and "runs" not in row.desired:
            run = {name: row.desired[name] for name in ("model", "bundle", "operating_point")}
            desired = {"device_id": row.device_id, "revision": row.revision}
            desired["runs"] = [run | {"revision": row.revision}]
            changed = sa.update(devices).where(devices.c.device_id == row.device_id).values(desired=desired)
            connection.execute(changed)
