"""Alembic migrations; both processes bring the database to the newest on start (`cloud.database.migrate`)."""
