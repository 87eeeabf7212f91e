"""Alembic's entry point: runs the steps on the connection, and inside the transaction, that database.py hands over."""

from alembic import context

from tailnet.store.schema import metadata

# One transaction around all steps: SQLite rolls back DDL too, so a failed step leaves the old schema untouched.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
