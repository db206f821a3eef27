"""Add the host that limits a job, so that a record that is scheduled again still has it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no row is rewritten."""
    op.add_column("jobs", sa.Column("host", sa.Text(), nullable=True), schema="cplane")


def downgrade() -> None:
    """Drop the column: queued jobs are not limited any more."""
    op.drop_column("jobs", "host", schema="cplane")
