"""Create browser sessions, which are stored encrypted and held by one attempt at a time."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; nothing else changes, so web and workers may run concurrently."""
    op.create_table(
        "sessions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("size", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_by", sa.UUID(), nullable=True),
        sa.Column("held_attempt", sa.Integer(), nullable=True),
        sa.Column("held_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,199}$'", name="name_safe"),
        sa.CheckConstraint("(ciphertext IS NULL) = (key_id IS NULL)", name="key_known"),
        sa.CheckConstraint("num_nulls(held_by, held_attempt, held_since, held_until) IN (0, 4)", name="hold_whole"),
        sa.PrimaryKeyConstraint("name"),
        schema="cplane",
    )
    # encrypted data cannot be compressed: do not try
    op.execute("ALTER TABLE cplane.sessions ALTER COLUMN ciphertext SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Drop the table and every session in it."""
    op.drop_table("sessions", schema="cplane")
