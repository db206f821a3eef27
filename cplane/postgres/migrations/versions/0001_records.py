"""Create records, attempts and artifacts."""
# pyright: reportUnknownArgumentType=false
# alembic and the JSONB type leave parameters untyped

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("args", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_traceback", sa.Text(), nullable=True),
        sa.Column("progress_done", sa.Double(), nullable=True),
        sa.Column("progress_total", sa.Double(), nullable=True),
        sa.Column("progress_note", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("run_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "cause IN ('submit', 'retry', 'lost', 'release', 'infrastructure', 'replay')", name="cause_known"
        ),
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state_known"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        schema="cplane",
    )
    op.create_index("jobs_by_job", "jobs", ["job", sa.literal_column("id DESC")], unique=False, schema="cplane")
    op.create_index("jobs_by_queue", "jobs", ["queue", sa.literal_column("id DESC")], unique=False, schema="cplane")
    op.create_index("jobs_by_state", "jobs", ["state", sa.literal_column("id DESC")], unique=False, schema="cplane")
    op.create_index(
        "jobs_due",
        "jobs",
        ["queue", "run_at"],
        unique=False,
        schema="cplane",
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "jobs_leased",
        "jobs",
        ["lease_until"],
        unique=False,
        schema="cplane",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["job_id"], ["cplane.jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "name"),
        schema="cplane",
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_traceback", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "cause IN ('submit', 'retry', 'lost', 'release', 'infrastructure', 'replay')", name="cause_known"
        ),
        sa.CheckConstraint(
            "state IN ('running', 'succeeded', 'failed', 'timed_out', 'cancelled', 'released', 'interrupted', 'lost')",
            name="state_known",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["cplane.jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt"),
        schema="cplane",
    )


def downgrade() -> None:
    """Drop the tables and their rows."""
    op.drop_table("artifacts", schema="cplane")
    op.drop_table("attempts", schema="cplane")
    op.drop_table("jobs", schema="cplane")
