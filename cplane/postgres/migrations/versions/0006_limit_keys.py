"""Store the limit keys of a job as an array: `host` held them as one text, separated by spaces."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and fill it; only rows of limited jobs are rewritten."""
    op.add_column("jobs", sa.Column("limit_keys", ARRAY(sa.Text()), nullable=True), schema="cplane")
    op.execute("UPDATE cplane.jobs SET limit_keys = string_to_array(host, ' ') WHERE host IS NOT NULL")
    op.drop_column("jobs", "host", schema="cplane")


def downgrade() -> None:
    """Join the keys into one text again."""
    op.add_column("jobs", sa.Column("host", sa.Text(), nullable=True), schema="cplane")
    op.execute("UPDATE cplane.jobs SET host = array_to_string(limit_keys, ' ') WHERE limit_keys IS NOT NULL")
    op.drop_column("jobs", "limit_keys", schema="cplane")
