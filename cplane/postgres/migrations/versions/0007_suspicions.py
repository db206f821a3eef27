"""Count the crashes of a worker whose cause is not known, apart from those that the job caused."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no row is rewritten."""
    op.add_column(
        "jobs", sa.Column("suspicions", sa.SmallInteger(), nullable=False, server_default="0"), schema="cplane"
    )


def downgrade() -> None:
    """Drop the column: the crashes in it cost nothing."""
    op.drop_column("jobs", "suspicions", schema="cplane")
