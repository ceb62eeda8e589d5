"""Alembic's frame: runs the steps on the connection that `cloud.database.migrate` opened, in its transaction."""

from alembic import context

from cloud.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
