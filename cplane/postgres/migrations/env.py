"""The environment in which alembic runs our revisions: on the connection of `upgrade`, in its transaction."""

from alembic import context

from cplane.postgres.models import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
