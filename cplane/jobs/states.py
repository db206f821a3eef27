"""The states of a record, and the words for what happened to an attempt. Legal moves live here alone."""

from enum import StrEnum


class State(StrEnum):
    """Where a record is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing but a replay moves the record from here."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}
"""The legal changes of a record's state. SQL makes them, so this is their specification: tests call every statement on a
record in every state, and compare the changes, and the table in docs/protocol.md, with it."""


class Cause(StrEnum):
    """Why an attempt was made."""

    SUBMIT = "submit"
    RETRY = "retry"
    LOST = "lost"
    RELEASE = "release"
    INFRASTRUCTURE = "infrastructure"
    REPLAY = "replay"


class AttemptState(StrEnum):
    """How an attempt ended; `running` until it does."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    RELEASED = "released"
    INTERRUPTED = "interrupted"
    LOST = "lost"


MAX_CRASHES = 3
"""A job whose worker died this often is poison and fails."""

MAX_INTERRUPTIONS = 20
"""Infrastructure failures a job survives; the cap keeps a broken machine from looping for ever."""


class Priority(StrEnum):
    """Which of a queue's lanes a job waits in. A lower lane is never starved: now and then it is served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
