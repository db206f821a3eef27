"""The tables, as SQLModel classes: records, attempts, artifacts, browser sessions, the epoch."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlmodel import Field, SQLModel

from cplane.jobs.states import AttemptState, Cause, Priority, State

SCHEMA = "cplane"
"""Our own Postgres schema: an application's tables in the same database cannot collide with ours."""

metadata = MetaData(schema=SCHEMA)

NOW = text("clock_timestamp()")


class EnumText(TypeDecorator[StrEnum]):
    """A text column that reads as a member of an enum."""

    impl = Text
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002  SQLAlchemy names it
        """Return the member of the enum."""
        return None if value is None else self.enum(value)


def _one_of(column: str, enum: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{member}'" for member in enum)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _time(*, required: bool = False) -> Any:
    return Field(
        default=None,
        sa_column=Column(DateTime(timezone=True), nullable=not required, server_default=NOW if required else None),
    )


class Base(SQLModel):
    """The base of our tables, separate from an application's SQLModel metadata."""

    metadata = metadata


class JobRecord(Base, table=True):
    """One submitted job."""

    __tablename__ = "jobs"  # pyright: ignore[reportAssignmentType]  SQLModel declares it for functions too

    id: UUID = Field(sa_column=Column(PG_UUID(as_uuid=True), primary_key=True))
    job: str = Field(sa_column=Column(Text, nullable=False))
    queue: str = Field(sa_column=Column(Text, nullable=False))
    priority: Priority = Field(
        default=Priority.NORMAL, sa_column=Column(EnumText(Priority), nullable=False, server_default="normal")
    )
    state: State = Field(sa_column=Column(EnumText(State), nullable=False))
    cause: Cause = Field(sa_column=Column(EnumText(Cause), nullable=False))
    args: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    result: Any = Field(default=None, sa_column=Column(JSONB(none_as_null=True)))
    error_type: str | None = Field(default=None, sa_column=Column(Text))
    error_message: str | None = Field(default=None, sa_column=Column(Text))
    error_traceback: str | None = Field(default=None, sa_column=Column(Text))
    progress_done: float | None = Field(default=None, sa_column=Column(Double))
    progress_total: float | None = Field(default=None, sa_column=Column(Double))
    progress_note: str | None = Field(default=None, sa_column=Column(Text))
    key: str | None = Field(default=None, sa_column=Column(Text))
    request_hash: bytes | None = None
    limit_keys: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text)))
    timeout_s: float | None = Field(default=None, sa_column=Column(Double))
    attempt: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    failures: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    crashes: int = Field(default=0, sa_column=Column(SmallInteger, nullable=False, server_default="0"))
    suspicions: int = Field(default=0, sa_column=Column(SmallInteger, nullable=False, server_default="0"))
    interruptions: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    cancel_requested: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    worker: str | None = Field(default=None, sa_column=Column(Text))
    lease_token: str | None = Field(default=None, sa_column=Column(Text))
    lease_until: datetime | None = _time()
    created_at: datetime = _time(required=True)
    run_at: datetime = _time(required=True)
    started_at: datetime | None = _time()
    finished_at: datetime | None = _time()

    __table_args__ = (
        _one_of("state", State),
        _one_of("cause", Cause),
        _one_of("priority", Priority),
        # the reconciler finds due and lost records without reading final ones
        Index("jobs_due", "queue", "priority", "run_at", postgresql_where=text("state = 'queued'")),
        Index("jobs_leased", "lease_until", postgresql_where=text("state = 'running'")),
        # rows without a key cost this index nothing
        Index("jobs_by_key", "key", unique=True, postgresql_where=text("key IS NOT NULL")),
        # Lists are read newest first, unfiltered or by one filter. Every index is written again each time a record
        # changes, so there are few: one serves job and queue (statements.NEWEST), and the partial index of each state
        # holds its own records only. The id is an expression here, so that the planner cannot use this index to find a
        # record by its key: for a table that was empty when the plan was made, all indexes with an id look alike.
        Index("jobs_by_job", "job", "queue", text("uuid_send(id) DESC")),
        Index("jobs_queued", "id", postgresql_where=text("state = 'queued'")),
        Index("jobs_succeeded", "id", postgresql_where=text("state = 'succeeded'")),
        Index("jobs_retriable", "state", "id", postgresql_where=text("state IN ('failed', 'cancelled')")),
    )


class AttemptRecord(Base, table=True):
    """One run of a job by one worker, written when it has ended.

    There is no foreign key: a trigger deletes the attempts of a deleted record.
    """

    __tablename__ = "attempts"  # pyright: ignore[reportAssignmentType]

    job_id: UUID = Field(sa_column=Column(PG_UUID(as_uuid=True), primary_key=True))
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    worker: str = Field(sa_column=Column(Text, nullable=False))
    cause: Cause = Field(sa_column=Column(EnumText(Cause), nullable=False))
    state: AttemptState = Field(sa_column=Column(EnumText(AttemptState), nullable=False))
    started_at: datetime = _time(required=True)
    finished_at: datetime | None = _time()
    error_type: str | None = Field(default=None, sa_column=Column(Text))
    error_message: str | None = Field(default=None, sa_column=Column(Text))
    error_traceback: str | None = Field(default=None, sa_column=Column(Text))

    __table_args__ = (_one_of("state", AttemptState), _one_of("cause", Cause))


class ArtifactRecord(Base, table=True):
    """One file that an attempt wrote to the artifact store, at `path`."""

    __tablename__ = "artifacts"  # pyright: ignore[reportAssignmentType]

    job_id: UUID = Field(
        sa_column=Column(PG_UUID(as_uuid=True), ForeignKey("cplane.jobs.id", ondelete="CASCADE"), primary_key=True)
    )
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    name: str = Field(sa_column=Column(Text, primary_key=True))
    media_type: str = Field(sa_column=Column(Text, nullable=False))
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: str = Field(sa_column=Column(Text, nullable=False))
    path: str = Field(sa_column=Column(Text, nullable=False))
    created_at: datetime = _time(required=True)


class SessionRecord(Base, table=True):
    """One browser session, encrypted, and the attempt that holds it. Without a ciphertext nothing is saved yet."""

    __tablename__ = "sessions"  # pyright: ignore[reportAssignmentType]

    name: str = Field(sa_column=Column(Text, primary_key=True))
    ciphertext: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    key_id: str | None = Field(default=None, sa_column=Column(Text))
    size: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    version: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    created_at: datetime = _time(required=True)
    updated_at: datetime = _time(required=True)
    used_at: datetime | None = _time()
    held_by: UUID | None = Field(default=None, sa_column=Column(PG_UUID(as_uuid=True)))
    held_attempt: int | None = Field(default=None, sa_column=Column(Integer))
    held_since: datetime | None = _time()
    held_until: datetime | None = _time()
    hosts: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text)))
    allowed_hosts: list[str] = Field(
        default_factory=list, sa_column=Column(ARRAY(Text), nullable=False, server_default="{}")
    )
    allowed_options: list[str] = Field(
        default_factory=list, sa_column=Column(ARRAY(Text), nullable=False, server_default="{}")
    )

    __table_args__ = (
        CheckConstraint("name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,199}$'", name="name_safe"),
        CheckConstraint("(ciphertext IS NULL) = (key_id IS NULL)", name="key_known"),
        CheckConstraint("num_nulls(held_by, held_attempt, held_since, held_until) IN (0, 4)", name="hold_whole"),
    )


class EpochRecord(Base, table=True):
    """The last recorded value of Redis's epoch: one row. A Redis with a lower value was wiped or rolled back."""

    __tablename__ = "epoch"  # pyright: ignore[reportAssignmentType]

    single: bool = Field(default=True, sa_column=Column(Boolean, primary_key=True, server_default=text("true")))
    number: int = Field(sa_column=Column(BigInteger, nullable=False))
    restored_by: str | None = Field(default=None, sa_column=Column(Text))
    restored_until: datetime | None = _time()

    __table_args__ = (CheckConstraint("single", name="one_row"),)
