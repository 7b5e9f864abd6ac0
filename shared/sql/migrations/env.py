"""Alembic's entry point: runs the revisions on the connection (and in the transaction) it is given."""

from __future__ import annotations

from alembic import context

from shared.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
