"""What the store is given and what it returns: one type a row, and how columns are written and read."""

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

NULL = b"null"


Fence = tuple[UUID, int]
"""A record and an attempt of it: a worker may meanwhile have lost one and been granted the next."""


class NewRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A record to be. `delay_s` counts from now by the database's clock; `run_at` is absolute; neither: at once."""

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
    """The keys that the job is limited by: its host, its browser session."""


class Submitted(msgspec.Struct, frozen=True, gc=False):
    """The record a submission led to: the new one, or the earlier one of the same idempotency key."""

    id: UUID
    created: bool
    delay_ms: int
    """Until it is due, by the database's clock."""
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


class Error(msgspec.Struct, frozen=True, gc=False):
    """What an attempt raised, as text."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """One lease to extend, with the progress of its attempt (None: as it was)."""

    id: UUID
    attempt: int
    token: str
    progress: Progress | None = None


class Finish(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How an attempt leaves its record: final, or queued again in `delay_s` seconds."""

    id: UUID
    attempt: int
    token: str
    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    """Why the next attempt will be made, when queued."""
    failures: int = 0
    interruptions: int = 0
    """What this attempt adds to the budgets."""
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a record is, for a schedule that does not know: `due_in_ms` until it may start, or until its lease ends."""

    id: UUID
    state: State
    job: str
    queue: str
    priority: Priority
    limit_keys: tuple[str, ...]
    due_in_ms: int


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records a list shows."""

    state: State | None = None
    job: str | None = None
    queue: str | None = None


def read_submitted(record: NewRecord, row: Any, earlier: Any) -> Submitted | IdempotencyConflict:
    """Return what a submission led to: its own row, the earlier record of its key, or the conflict."""
    if row is not None:
        _, due_in_ms, created_at, run_at = row
        return Submitted(record.id, True, due_in_ms, State.QUEUED, created_at, run_at)
    if earlier is None:
        # the key was taken by a transaction that has not committed, or its record was deleted a moment ago
        return KeyInUse("another request with this idempotency key is under way", hint="send it again")
    if earlier["request_hash"] != record.request_hash:
        return IdempotencyConflict(
            f"the idempotency key was used for another call, job {earlier['id']}", hint="use a new key for a new call"
        )
    return Submitted(
        earlier["id"], False, earlier["due_in_ms"], State(earlier["state"]), earlier["created_at"], earlier["run_at"]
    )


def read_standing(row: Any) -> Standing:
    """Return a row of a statement that ends in DUE_IN_MS."""
    id_, state, job, queue, priority, limit_keys, due_in_ms = row
    return Standing(id_, State(state), job, queue, Priority(priority), tuple(limit_keys or ()), max(0, due_in_ms))


def running_attempt(record: JobRecord) -> AttemptRecord:
    """Return the attempt that runs now, which has no row of its own before it ends."""
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
    """Whether there is nothing to say but that it succeeded, and with what."""
    said = finish.progress or finish.error or finish.failures or finish.interruptions or finish.result_json is None
    return finish.state is State.SUCCEEDED and finish.attempt_state is AttemptState.SUCCEEDED and not said


def same_or_column(one: str, many: str, values: list[str]) -> dict[str, Any]:
    """A column of which every value is the same goes as that value, and the column is left out."""
    is_same = len(set(values)) == 1
    return {one: values[0] if is_same else None, many: [] if is_same else values}


def optional_column(values: list[Any]) -> list[Any]:
    """A column of which every value is absent is left out: unnest() fills it with NULL."""
    return values if any(value is not None for value in values) else []


def progress_columns(steps: Sequence[Progress | None]) -> dict[str, Any]:
    """Return the columns of progress; None leaves a record's progress as it was."""
    return {
        "dones": [None if step is None else step.done for step in steps],
        "totals": [None if step is None else step.total for step in steps],
        "notes": [None if step is None else storable(step.note) for step in steps],
    }


def storable(value: str) -> str:
    """Text that Postgres takes: no NUL, no lone surrogate."""
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
