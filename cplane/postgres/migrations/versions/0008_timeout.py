"""Keep the timeout that a submission asked for; NULL is the job's own."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no row is rewritten."""
    op.add_column("jobs", sa.Column("timeout_s", sa.Double(), nullable=True), schema="cplane")


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "timeout_s", schema="cplane")
