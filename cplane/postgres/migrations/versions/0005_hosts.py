"""The host that a job is limited by: what is scheduled again carries it too."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no row is written anew."""
    op.add_column("jobs", sa.Column("host", sa.Text(), nullable=True), schema="cplane")


def downgrade() -> None:
    """Drop it: jobs that wait are not limited any more."""
    op.drop_column("jobs", "host", schema="cplane")
