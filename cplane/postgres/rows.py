"""The requests and results of the store: one type per row, and how columns are written and read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import msgspec

from cplane.errors import IdempotencyConflict, KeyInUse
from cplane.jobs.context import Progress
from cplane.jobs.states import AttemptState, Cause, Priority, State
from cplane.postgres.models import AttemptRecord, JobRecord
from cplane.runtime.error_text import Error
from cplane.runtime.text import storable

NULL = b"null"


Fence = tuple[UUID, int]
"""A record and one of its attempts: a worker may have lost one attempt and been granted the next."""


class NewRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A record to create. It is due at `run_at`, `delay_s` seconds from now by the database's clock, or immediately."""

    id: UUID
    job: str
    queue: str
    args_json: bytes
    priority: Priority = Priority.NORMAL
    delay_s: float | None = None
    run_at: datetime | None = None
    key: str | None = None
    request_hash: bytes | None = None
    limit_keys: tuple[str, ...] = ()
    """The limit keys that the job needs: its host, its browser session."""
    timeout_s: float | None = None
    """Maximum duration of an attempt, seconds; None: the job's own."""


class Submitted(msgspec.Struct, frozen=True, gc=False):
    """The record of a submission: a new one, or the earlier one of the same idempotency key."""

    id: UUID
    created: bool
    delay_ms: int
    """ms until it is due, by the database's clock; negative if it is overdue."""
    state: State
    created_at: datetime
    run_at: datetime


class Started(msgspec.Struct, frozen=True, gc=False):
    """A record this worker has started: `attempt` and `token` are its fence."""

    id: UUID
    attempt: int
    token: str
    job: str
    args_json: bytes
    failures: int
    interruptions: int
    timeout_s: float | None = None
    """What the submission set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """One lease to extend, with the progress of its attempt (None: unchanged)."""

    id: UUID
    attempt: int
    token: str
    progress: Progress | None = None


class Finish(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The outcome of an attempt: a final state, or queued again in `delay_s` seconds."""

    id: UUID
    attempt: int
    token: str
    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    """Why the next attempt will be made; for QUEUED."""
    failures: int = 0
    interruptions: int = 0
    """What this attempt uses of the budgets."""
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """What the schedule needs to know of a record."""

    id: UUID
    state: State
    job: str
    queue: str
    priority: Priority
    limit_keys: tuple[str, ...]
    due_in_ms: int
    """ms until the record is due, or, while it runs, until its lease ends; at least 0."""


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """The records that a list or a replay selects; None: any."""

    state: State | None = None
    job: str | None = None
    queue: str | None = None


class RecordSummary(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A record in a list, with the names of `JobRecord`: without what may be large, its arguments and its outcome."""

    id: UUID
    job: str
    queue: str
    priority: Priority
    state: State
    error_type: str | None
    error_message: str | None
    progress_done: float | None
    progress_total: float | None
    progress_note: str | None
    key: str | None
    attempt: int
    failures: int
    interruptions: int
    limit_keys: list[str] | None
    timeout_s: float | None
    cancel_requested: bool
    worker: str | None
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


SUMMARY_COLUMNS = tuple(getattr(JobRecord, name) for name in RecordSummary.__struct_fields__)
"""What a list reads of each record. Forty records with arguments of 1 MiB each took longer than a response may."""


def read_summary(row: Any) -> RecordSummary:
    """Return the summary of a row of SUMMARY_COLUMNS."""
    return RecordSummary(**row._mapping)  # noqa: SLF001  SQLAlchemy's name for a public attribute


def read_submitted(record: NewRecord, row: Any, earlier: Any) -> Submitted | IdempotencyConflict:
    """Return the outcome of a submission: its own row, the earlier record of its key, or the conflict."""
    if row is not None:
        _, due_in_ms, created_at, run_at = row
        return Submitted(record.id, True, due_in_ms, State.QUEUED, created_at, run_at)
    if earlier is None:
        # the key belongs to a transaction that has not committed, or its record was deleted a moment ago
        return KeyInUse("another request with this idempotency key is in flight", hint="send it again")
    if earlier["request_hash"] != record.request_hash:
        return IdempotencyConflict(
            f"the idempotency key was used for another call, job {earlier['id']}", hint="use a new key for a new call"
        )
    return Submitted(
        earlier["id"], False, earlier["due_in_ms"], State(earlier["state"]), earlier["created_at"], earlier["run_at"]
    )


def read_schedule_row(row: Any) -> ScheduleRow:
    """Return what the schedule needs, from a row that ends with DUE_IN_MS."""
    id_, state, job, queue, priority, limit_keys, due_in_ms = row
    return ScheduleRow(id_, State(state), job, queue, Priority(priority), tuple(limit_keys or ()), max(0, due_in_ms))


def running_attempt(record: JobRecord) -> AttemptRecord:
    """Return the attempt that runs now, which has no row before it ends."""
    return AttemptRecord(
        job_id=record.id,
        attempt=record.attempt,
        worker=record.worker or "",
        cause=record.cause,
        state=AttemptState.RUNNING,
        started_at=cast("datetime", record.started_at),
    )


def finish_columns(finishes: Sequence[Finish]) -> dict[str, Any]:
    """Return the columns of the FINISH statement."""
    errors = [finish.error for finish in finishes]
    return {
        "ids": [finish.id for finish in finishes],
        "attempts": [finish.attempt for finish in finishes],
        "tokens": [finish.token for finish in finishes],
        "results": [None if finish.result_json is None else finish.result_json.decode() for finish in finishes],
        "states": [finish.state.value for finish in finishes],
        "attempt_states": [finish.attempt_state.value for finish in finishes],
        "error_types": [None if error is None else storable(error.type) for error in errors],
        "error_messages": [None if error is None else storable(error.message) for error in errors],
        "error_tracebacks": [None if error is None else storable(error.traceback) for error in errors],
        "delays": [finish.delay_s for finish in finishes],
        "causes": [finish.cause.value for finish in finishes],
        "failures": [finish.failures for finish in finishes],
        "interruptions": [finish.interruptions for finish in finishes],
        **progress_columns([finish.progress for finish in finishes]),
    }


def is_plain(finish: Finish) -> bool:
    """Return whether an outcome is a success with a result and nothing else, which FINISH_PLAIN can record."""
    extra = finish.progress or finish.error or finish.failures or finish.interruptions or finish.result_json is None
    return finish.state is State.SUCCEEDED and finish.attempt_state is AttemptState.SUCCEEDED and not extra


def same_or_column(one: str, many: str, values: list[str]) -> dict[str, Any]:
    """Return a column as one value if all its values are equal, and leave the column empty; otherwise the column."""
    is_same = len(set(values)) == 1
    return {one: values[0] if is_same else None, many: [] if is_same else values}


def optional_column(values: list[Any]) -> list[Any]:
    """Return a column, or an empty one if it has only None: unnest() fills it with NULL."""
    return values if any(value is not None for value in values) else []


def progress_columns(steps: Sequence[Progress | None]) -> dict[str, Any]:
    """Return the columns of progress; None leaves a record's progress unchanged."""
    return {
        "dones": [None if step is None else step.done for step in steps],
        "totals": [None if step is None else step.total for step in steps],
        "notes": [None if step is None else storable(step.note) for step in steps],
    }
