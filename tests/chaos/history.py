"""A run as values: the requests, the runs of jobs, the faults, and the final state of the records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class FaultKind(StrEnum):
    """The kind of a fault."""

    KILL = "kill"
    """A worker received SIGKILL."""
    CRASH = "crash"
    """A worker ended with os._exit at a crash point."""
    POISON = "poison"
    """A job ended its worker."""
    STOP = "stop"
    """A worker received SIGTERM."""
    FREEZE = "freeze"
    """A worker was suspended with SIGSTOP."""
    BLOCK = "block"
    """A job blocked the event loop."""
    STALL = "stall"
    """Not injected: a worker's event loop was late, or a call took long, as happens on a busy machine."""
    CALL = "call"
    """One call of a worker failed, was late, or was done but reported as failed."""
    REDIS = "redis"
    """Redis was killed, emptied or restored from an older copy."""
    POSTGRES = "postgres"
    """Postgres was restarted, or its sessions were ended."""
    PARTITION = "partition"
    """The network between a worker and a server was cut, blocked or slow."""
    CLOCK = "clock"
    """The clock of a worker was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault with its start and end. `pid` is set if it concerns one worker only."""

    kind: FaultKind
    began: float
    ended: float
    pid: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """One submission. `record` is None if it was not acknowledged."""

    tag: str
    job: str
    at: float
    record: str | None
    key: str | None = None
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a job's code. `ended` is None if its process died or the run was abandoned."""

    record: str
    attempt: int
    pid: int
    began: float
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """An acknowledged transient job. `state` is what its handle returns at the end; None: the job is unknown."""

    id: str
    at: float
    state: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One state change of a record, as the trigger in the database logged it, in the order of commits."""

    record: str
    old: str | None
    new: str
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The reply to a worker that recorded an outcome: this attempt put the record into this state."""

    record: str
    attempt: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An acknowledged cancel or replay. `state` is the state of the record after it."""

    record: str
    verb: str
    at: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The final state of a record. `result_attempt` is the attempt that returned its result."""

    id: str
    tag: str
    job: str
    state: str
    attempt: int
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    error_type: str | None = None
    error_message: str | None = None
    result_attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOutcome:
    """An attempt, as the control plane returns it at the end."""

    record: str
    attempt: int
    cause: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A worker that began to serve."""

    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A worker that ended."""

    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that happened in one scenario."""

    submits: tuple[Submit, ...] = ()
    runs: tuple[Run, ...] = ()
    transients: tuple[Transient, ...] = ()
    transient_runs: tuple[Run, ...] = ()
    faults: tuple[Fault, ...] = ()
    moves: tuple[Move, ...] = ()
    accepted: tuple[Accepted, ...] = ()
    commands: tuple[Command, ...] = ()
    records: tuple[Record, ...] = ()
    attempts: tuple[AttemptOutcome, ...] = ()
    starts: tuple[Start, ...] = ()
    exits: tuple[Exit, ...] = ()
    effects: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of rows that the job of a record wrote in `ctx.transaction()`."""
    scheduled: tuple[str, ...] = ()
    """The ids that Redis still holds at the end."""
