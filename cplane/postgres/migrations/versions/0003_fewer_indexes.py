"""Make indexes fewer and smaller: every change of a record writes each of them again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the indexes; submissions and workers wait until it is done."""
    for name in ("jobs_by_queue", "jobs_by_job", "jobs_by_state"):
        op.drop_index(name, "jobs", schema="cplane")
    op.create_index("jobs_by_job", "jobs", ["job", "queue", sa.literal_column("uuid_send(id) DESC")], schema="cplane")
    for name, columns, where in (
        ("jobs_queued", ["id"], "state = 'queued'"),
        ("jobs_succeeded", ["id"], "state = 'succeeded'"),
        ("jobs_retriable", ["state", "id"], "state IN ('failed', 'cancelled')"),
    ):
        op.create_index(name, "jobs", columns, schema="cplane", postgresql_where=sa.text(where))


def downgrade() -> None:
    """Restore the indexes of the previous version."""
    for name in ("jobs_by_job", "jobs_queued", "jobs_succeeded", "jobs_retriable"):
        op.drop_index(name, "jobs", schema="cplane")
    for column in ("job", "queue", "state"):
        op.create_index(f"jobs_by_{column}", "jobs", [column, sa.literal_column("id DESC")], schema="cplane")
