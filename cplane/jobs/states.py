"""States of records and attempts, and the legal transitions, which are defined here alone."""

from enum import StrEnum


class State(StrEnum):
    """State of a record."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether only a replay changes this state."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}
"""The legal changes of a record's state. SQL makes them, so this is their specification: tests call every statement on a
record in every state, and compare the changes, and the table in docs/protocol.md, with it."""


class Cause(StrEnum):
    """Reason of an attempt."""

    SUBMIT = "submit"
    RETRY = "retry"
    LOST = "lost"
    RELEASE = "release"
    INFRASTRUCTURE = "infrastructure"
    REPLAY = "replay"


class AttemptState(StrEnum):
    """Outcome of an attempt; `running` until it ends."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    RELEASED = "released"
    INTERRUPTED = "interrupted"
    LOST = "lost"


MAX_CRASHES = 3
"""Number of workers that a job crashed, or that crashed while it ran alone, after which it is poison and fails."""

ALONE_AFTER = 2
"""Number of crashed workers that a job was aboard of after which it runs alone, in quarantine: only then is a crash surely
its own."""

MAX_INTERRUPTIONS = 20
"""Infrastructure failures that a job survives; the limit keeps a broken machine from retrying indefinitely."""


class Priority(StrEnum):
    """Lane of a queue that a job waits in. A lower lane never starves: now and then it is served first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
