"""Keep the hosts that a browser session is bound to, and what it allows beyond them.

NULL hosts are those that its content tells: it is empty, or was saved before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; no row is rewritten."""
    op.add_column("sessions", sa.Column("hosts", sa.ARRAY(sa.Text()), nullable=True), schema="cplane")
    for name in ("allowed_hosts", "allowed_options"):
        column: sa.Column[list[str]] = sa.Column(name, sa.ARRAY(sa.Text()), nullable=False, server_default="{}")
        op.add_column("sessions", column, schema="cplane")


def downgrade() -> None:
    """Drop the columns."""
    for name in ("hosts", "allowed_hosts", "allowed_options"):
        op.drop_column("sessions", name, schema="cplane")
