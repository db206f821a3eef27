"""What happened in a run, as values: what was asked, what ran, what was broken, and what the records say in the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class FaultKind(StrEnum):
    """What was broken."""

    KILL = "kill"
    """A worker was sent SIGKILL."""
    CRASH = "crash"
    """A worker left with os._exit at a crash point."""
    POISON = "poison"
    """A job ended its worker."""
    STOP = "stop"
    """A worker was sent SIGTERM."""
    FREEZE = "freeze"
    """A worker was stopped with SIGSTOP."""
    BLOCK = "block"
    """A job held the event loop."""
    STALL = "stall"
    """Nobody's doing: a worker's loop was late, or a call took long. Small machines do this by themselves."""
    CALL = "call"
    """One call of a worker failed, was late, or was carried out and reported as failed."""
    REDIS = "redis"
    """Redis was killed, emptied or set back."""
    POSTGRES = "postgres"
    """Postgres was restarted, or its sessions were ended."""
    PARTITION = "partition"
    """The network between a worker and a server was cut, held or slow."""
    CLOCK = "clock"
    """The clock of a worker was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that was broken, from when to when; `pid`: of one worker alone."""

    kind: FaultKind
    began: float
    ended: float
    pid: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """One submission. `record` None: nobody was told that it was accepted."""

    tag: str
    job: str
    at: float
    record: str | None
    key: str | None = None
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a job's code. `ended` None: its process died, or it was left behind."""

    record: str
    attempt: int
    pid: int
    began: float
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """A job without a record that was acknowledged: `state` is what its handle says at the end, None: nothing is known of it."""

    id: str
    at: float
    state: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of a record, as the database itself noted it, in the order of its commits."""

    record: str
    old: str | None
    new: str
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What a worker was answered when it recorded an outcome: the record is in this state by this attempt."""

    record: str
    attempt: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer:
    """A cancel or a replay that was acknowledged: `state` is what the record was left in."""

    record: str
    verb: str
    at: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record at the end. `result_attempt`: the attempt that its result comes from."""

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
class Ended:
    """An attempt, as the control plane tells it at the end."""

    record: str
    attempt: int
    cause: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A worker that ended."""

    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One run of the suite."""

    submits: tuple[Submit, ...] = ()
    runs: tuple[Run, ...] = ()
    transients: tuple[Transient, ...] = ()
    transient_runs: tuple[Run, ...] = ()
    faults: tuple[Fault, ...] = ()
    moves: tuple[Move, ...] = ()
    accepted: tuple[Accepted, ...] = ()
    steers: tuple[Steer, ...] = ()
    records: tuple[Record, ...] = ()
    attempts: tuple[Ended, ...] = ()
    exits: tuple[Exit, ...] = ()
    effects: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rows that a record's job wrote in `ctx.transaction()`."""
    scheduled: tuple[str, ...] = ()
    """What Redis still holds at the end."""
