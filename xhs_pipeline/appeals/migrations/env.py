"""Alembic's entry: runs the steps on the connection that it is given, in the transaction that holds the lock."""

from alembic import context

from xhs_pipeline.appeals.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
