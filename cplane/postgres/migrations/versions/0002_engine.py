"""Add priorities and Redis's epoch, write attempts when they end, and make indexes cheaper."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables; workers of the previous version must not run concurrently."""
    op.add_column("jobs", sa.Column("priority", sa.Text(), server_default="normal", nullable=False), schema="cplane")
    op.create_check_constraint("priority_known", "jobs", "priority IN ('high', 'normal', 'low')", schema="cplane")
    op.drop_index("jobs_due", "jobs", schema="cplane")
    op.create_index(
        "jobs_due",
        "jobs",
        ["queue", "priority", "run_at"],
        schema="cplane",
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.drop_constraint("jobs_key_key", "jobs", schema="cplane")
    op.create_index(
        "jobs_by_key", "jobs", ["key"], unique=True, schema="cplane", postgresql_where=sa.text("key IS NOT NULL")
    )
    # a running attempt is known from its record; its row is written once, when it has ended
    op.execute("DELETE FROM cplane.attempts WHERE state = 'running'")
    # checking the foreign key of an attempt costs more than writing it; a trigger deletes the attempts of a deleted job
    # instead
    op.drop_constraint("attempts_job_id_fkey", "attempts", schema="cplane")
    op.execute("""
        CREATE FUNCTION cplane.delete_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM cplane.attempts USING gone WHERE attempts.job_id = gone.id;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER delete_attempts AFTER DELETE ON cplane.jobs
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION cplane.delete_attempts()
    """)
    op.create_table(
        "epoch",
        sa.Column("single", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("restored_by", sa.Text(), nullable=True),
        sa.Column("restored_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("single", name="one_row"),
        sa.PrimaryKeyConstraint("single"),
        schema="cplane",
    )
    op.execute("INSERT INTO cplane.epoch (number) VALUES (0)")


def downgrade() -> None:
    """Restore the tables of the previous version; priorities are lost."""
    op.drop_table("epoch", schema="cplane")
    op.execute("DROP TRIGGER delete_attempts ON cplane.jobs")
    op.execute("DROP FUNCTION cplane.delete_attempts()")
    op.create_foreign_key(
        "attempts_job_id_fkey",
        "attempts",
        "jobs",
        ["job_id"],
        ["id"],
        source_schema="cplane",
        referent_schema="cplane",
        ondelete="CASCADE",
    )
    op.drop_index("jobs_by_key", "jobs", schema="cplane")
    op.create_unique_constraint("jobs_key_key", "jobs", ["key"], schema="cplane")
    op.drop_index("jobs_due", "jobs", schema="cplane")
    op.create_index(
        "jobs_due", "jobs", ["queue", "run_at"], schema="cplane", postgresql_where=sa.text("state = 'queued'")
    )
    op.drop_column("jobs", "priority", schema="cplane")
