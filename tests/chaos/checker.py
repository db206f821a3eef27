"""The judge: the rules that a history must not break.

Pure: it works on values only. test_checker.py shows every rule failing.

A rule is a generator of violations. `Bounds` has the times that the product promises.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import FINAL, AttemptOutcome, Fault, FaultKind, History, Record, Run

LEGAL: dict[str | None, set[str]] = {
    None: {"queued"},
    "queued": {"queued", "running", "cancelled"},
    "running": {"running", "queued", "succeeded", "failed", "cancelled"},
    "succeeded": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}
"""The legal moves of a record, without replays. Duplicated on purpose: the suite does not ask the product what is
right.
"""

EXPLAINS: dict[str, frozenset[FaultKind]] = {
    "lost": frozenset(FaultKind) - {FaultKind.REDIS, FaultKind.CLOCK, FaultKind.STOP},
    "release": frozenset({FaultKind.STOP}),
    "infrastructure": frozenset(
        {FaultKind.POSTGRES, FaultKind.REDIS, FaultKind.PARTITION, FaultKind.CALL, FaultKind.FREEZE}
    ),
}
"""The faults that can be the reason for another attempt. The loss of Redis, a clock step or a deploy must never cost
a lease.

The deadline of a call in a job can pass while its process is frozen. The resumed process may detect that before it
detects its lost lease.
"""

EXPLAINS_RERUN = EXPLAINS["lost"] | {FaultKind.REDIS, FaultKind.STOP}
"""The faults that can be the reason for another run of a transient job, which is kept in Redis only."""

DEATHS = frozenset({FaultKind.KILL, FaultKind.CRASH, FaultKind.POISON})

CLEANUP_S = 5.0

CUT_OFF = frozenset({FaultKind.PARTITION})
SUSPENDED = frozenset({FaultKind.FREEZE, FaultKind.BLOCK, FaultKind.STALL})
"""Faults during which a worker cannot stop its jobs, because it does not run itself."""

WORKER_ENDS = DEATHS | {FaultKind.STOP}

EXPECTED_STATES: dict[str, frozenset[str]] = {
    "chaos_fails": frozenset({"failed"}),
    "chaos_poison": frozenset({"failed"}),
}
"""The final states of jobs that are not cancelled; all other jobs succeed."""

MAX_CRASHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds for times, in seconds."""

    lease_s: float
    restart_s: float = 5.0
    """Maximum time from the end of a dead worker's lease to the restart of its jobs."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule, with the record and a description."""

    rule: str
    record: str
    description: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.record}: {self.description}"


Rule = Callable[[History, Bounds], Iterator[Violation]]


def check(history: History, bounds: Bounds) -> list[Violation]:
    """Return all violations of all rules."""
    return [violation for rule in RULES.values() for violation in rule(history, bounds)]


def accepted_is_final(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Every acknowledged job has a record, and every record is final once all faults are healed."""
    known = {record.id for record in history.records}
    for submit in history.submits:
        if submit.record is not None and submit.record not in known:
            yield Violation("accepted is final", submit.record, f"'{submit.tag}' was acknowledged and has no record")
    for record in history.records:
        if record.state not in FINAL:
            yield Violation("accepted is final", record.id, f"'{record.tag}' is still {record.state}")


def runs_once(history: History, bounds: Bounds) -> Iterator[Violation]:
    """No attempt of a record runs twice."""
    for (record, attempt), count in Counter((run.record, run.attempt) for run in history.runs).items():
        if count > 1:
            yield Violation("runs once", record, f"attempt {attempt} ran {count} times")


def runs_alone(history: History, bounds: Bounds) -> Iterator[Violation]:
    """An attempt has ended before the next begins, unless its worker was suspended.

    A worker stops jobs whose lease it may lose.

    A job that is stopped during a call to an unreachable Postgres ends when its driver abandons the call, within the
    time for cleanup of a stopped job (CLEANUP_S of `cplane/worker/attempt.py`). What it wrote is not committed.
    """
    began = {(run.record, run.attempt): run.began for run in history.runs}
    writes = {record.id for record in history.records if record.job == "chaos_writes"}
    for run in history.runs:
        after = [began[run.record, n] for n in range(run.attempt + 1, run.attempt + 9) if (run.record, n) in began]
        if not after or (run.ended is not None and run.ended <= min(after)):
            continue
        cut_off = run.record in writes and any(_overlaps(f, run.began, min(after), CUT_OFF) for f in history.faults)
        if cut_off and run.ended is not None and run.ended <= min(after) + CLEANUP_S:
            continue
        own_faults = [fault for fault in history.faults if fault.pid == run.pid]
        if not any(_overlaps(fault, run.began, min(after), SUSPENDED | DEATHS) for fault in own_faults):
            yield Violation("runs alone", run.record, f"attempt {run.attempt} still ran when the next began")


def one_finish(history: History, bounds: Bounds) -> Iterator[Violation]:
    """One attempt per record is confirmed as the one that finished it: the highest one. The result is its result."""
    attempts: dict[str, set[int]] = defaultdict(set)
    for accepted in history.accepted:
        if accepted.state in FINAL:
            attempts[accepted.record].add(accepted.attempt)
    replayed = Counter(command.record for command in history.commands if command.verb == "replay")
    for record in history.records:
        confirmed = attempts[record.id]
        if len(confirmed) > 1 + replayed[record.id]:
            yield Violation("one finish", record.id, f"attempts {sorted(confirmed)} were each confirmed as finished")
        if confirmed and max(confirmed) > record.attempt:
            yield Violation(
                "one finish", record.id, f"finished by attempt {max(confirmed)}, but the record has {record.attempt}"
            )
        if record.state == "succeeded" and record.result_attempt not in {None, record.attempt}:
            description = f"the result is of attempt {record.result_attempt}, the highest is {record.attempt}"
            yield Violation("one finish", record.id, description)


def moves_are_legal(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Final is final unless replayed. The attempt number grows by one when an attempt starts, and never otherwise."""
    replays = Counter(command.record for command in history.commands if command.verb == "replay")
    state: dict[str, str | None] = defaultdict(lambda: None)
    attempt: dict[str, int] = defaultdict(int)
    for move in history.moves:
        old, record = state[move.record], move.record
        if old in FINAL and move.new == "queued" and move.cause == "replay" and old != "succeeded":
            replays[record] -= 1
            if replays[record] < 0:
                yield Violation("moves are legal", record, f"{old} → queued by a replay that was not requested")
        elif move.new not in LEGAL[old]:
            yield Violation("moves are legal", record, f"{old} → {move.new} (attempt {move.attempt})")
        counted = old == "queued" and move.new == "running"
        if move.attempt != attempt[record] + counted:
            yield Violation(
                "moves are legal", record, f"{old} → {move.new}: attempt {attempt[record]} → {move.attempt}"
            )
        state[record], attempt[record] = move.new, move.attempt


def attempts_are_told(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A final record lists all attempts, 1 to the highest, all of them ended; and every attempt that ran is listed."""
    listed: dict[str, list[AttemptOutcome]] = defaultdict(list)
    for ended in history.attempts:
        listed[ended.record].append(ended)
    for record in history.records:
        attempts = sorted(listed[record.id], key=lambda ended: ended.attempt)
        if [ended.attempt for ended in attempts] != list(range(1, record.attempt + 1)):
            description = f"it has {record.attempt} attempts and lists {[ended.attempt for ended in attempts]}"
            yield Violation("attempts are told", record.id, description)
        for ended in attempts:
            if record.state in FINAL and ended.state == "running":
                yield Violation("attempts are told", record.id, f"attempt {ended.attempt} is listed as running")
    known = {(ended.record, ended.attempt) for ended in history.attempts}
    for run in history.runs:
        if (run.record, run.attempt) not in known:
            yield Violation("attempts are told", run.record, f"attempt {run.attempt} ran and is not listed")


def attempts_are_explained(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Every attempt after the first has a cause, and there is a fault of a matching kind between the two starts."""
    began = {(run.record, run.attempt): run.began for run in history.runs}
    failures = {record.id: record.failures for record in history.records}
    replayed = Counter(command.record for command in history.commands if command.verb == "replay")
    for ended in history.attempts:
        if (ended.attempt == 1) != (ended.cause == "submit") and not (ended.attempt == 1 and replayed[ended.record]):
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt} by '{ended.cause}'")
        elif ended.cause == "retry" and not failures[ended.record] and not replayed[ended.record]:
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt}: it never failed")
        elif ended.cause == "replay" and not replayed[ended.record]:
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt}: it was not replayed")
        elif ended.cause in EXPLAINS:
            since = _since(began, ended, history)
            until = began.get((ended.record, ended.attempt), float("inf"))
            if not any(_overlaps(fault, since, until, EXPLAINS[ended.cause]) for fault in history.faults):
                description = (
                    f"attempt {ended.attempt} by '{ended.cause}' without a fault from {since:.3f} to {until:.3f}"
                )
                yield Violation("attempts are explained", ended.record, description)


def transient_jobs_end(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A transient job succeeds, unless Redis lost its data or three of its workers died.

    It runs again only after a fault.
    """
    for job in history.transients:
        lost = any(fault.kind is FaultKind.REDIS and fault.ended >= job.at for fault in history.faults)
        deaths = sum(fault.kind in EXPLAINS["lost"] and fault.ended >= job.at for fault in history.faults)
        poisoned = job.state == "failed" and deaths >= MAX_CRASHES
        if job.state != "succeeded" and not lost and not poisoned:
            yield Violation("transient jobs end", job.id, f"it is {job.state or 'unknown'}")
    for run, again in _consecutive(history.transient_runs):
        if not any(_overlaps(fault, run.began, again.began, EXPLAINS_RERUN) for fault in history.faults):
            description = f"it ran at {run.began:.3f} and again at {again.began:.3f} without a fault"
            yield Violation("transient jobs end", run.record, description)


def restarts_in_time(history: History, bounds: Bounds) -> Iterator[Violation]:
    """The jobs of a dead worker start again within lease + 5 s, unless something else is broken at that time.

    If no other worker serves then, the time runs from the moment when one does.
    """
    within_s = bounds.lease_s + bounds.restart_s
    began = {(run.record, run.attempt): run for run in history.runs}
    restarts = [(run, began.get((run.record, run.attempt + 1))) for run in history.runs]
    restarts += _consecutive(history.transient_runs)
    deaths = sorted((fault for fault in history.faults if fault.kind in WORKER_ENDS), key=lambda fault: fault.began)
    for death in deaths:
        until = _served_from(death, history) + within_s
        for other in deaths:  # the worker that took over may have died as well
            if death.began < other.began < until:
                until = other.began + within_s
        if any(_overlaps(fault, death.began, until, frozenset(FaultKind) - WORKER_ENDS) for fault in history.faults):
            continue
        for run, again in restarts:
            if death.kind in DEATHS and _died_in(run, death) and again is not None and again.began > until:
                after_s = again.began - death.began
                description = f"attempt {run.attempt} died at {death.began:.3f}, the next began {after_s:.2f} s later"
                yield Violation("restarts in time", run.record, description)


def _served_from(death: Fault, history: History) -> float:
    """Return the first moment since a worker's death at which another one served."""
    ended = {each.pid: each.at for each in history.exits}
    others = [start for start in history.starts if start.pid != death.pid]
    serving = [start.at for start in others if ended.get(start.pid, float("inf")) > death.began]
    return max(death.began, min(serving, default=death.began))


def nothing_runs_early(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A delayed job does not begin before it is due, unless it is replayed.

    The product itself allows a tolerance of 0.1 s.
    """
    replayed = {command.record: command.at for command in reversed(history.commands) if command.verb == "replay"}
    first: dict[str, Run] = {}
    for run in history.runs:
        if run.record not in first or run.began < first[run.record].began:
            first[run.record] = run
    for submit in history.submits:
        if submit.record not in first:
            continue
        due = min(submit.at + submit.delay_s, replayed.get(submit.record, float("inf")))
        if (early_s := due - first[submit.record].began) > 0.15:
            yield Violation("nothing runs early", submit.record, f"it began {early_s:.3f} s too early")


def effects_are_exactly_once(history: History, bounds: Bounds) -> Iterator[Violation]:
    """The row that a job writes in its transaction exists once if the job succeeded, and does not exist otherwise."""
    for record in history.records:
        if record.job == "chaos_writes":
            expected = int(record.state == "succeeded")
            if (count := history.effects.get(record.id, 0)) != expected:
                yield Violation("effects are exactly once", record.id, f"{record.state}, written {count} times")


def keys_lead_to_one_record(history: History, bounds: Bounds) -> Iterator[Violation]:
    """One idempotency key leads to one record, however often it was sent and whatever the replies were."""
    tags = {submit.tag for submit in history.submits if submit.key is not None}
    for tag, count in Counter(record.tag for record in history.records).items():
        if tag in tags and count > 1:
            yield Violation("keys lead to one record", tag, f"one key made {count} records")
    returned: dict[str, set[str]] = defaultdict(set)
    for submit in history.submits:
        if submit.key is not None and submit.record is not None:
            returned[submit.key].add(submit.record)
    for key, records in returned.items():
        if len(records) > 1:
            yield Violation("keys lead to one record", key, f"one key returned {len(records)} records")


def cancelled_stays_cancelled(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A record that was cancelled while queued never runs afterwards."""
    records = {record.id: record for record in history.records}
    for command in history.commands:
        if (
            command.verb != "cancel"
            or command.state != "cancelled"
            or any(other.verb == "replay" and other.record == command.record for other in history.commands)
        ):
            continue
        if (record := records.get(command.record)) is not None and record.state != "cancelled":
            yield Violation("cancelled stays cancelled", record.id, f"it {record.state}")
        late = [run.attempt for run in history.runs if run.record == command.record and run.began > command.at]
        if late:
            yield Violation("cancelled stays cancelled", command.record, f"attempts {late} began after the cancel")


def outcomes_are_right(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Jobs end in the state that their code leads to.

    A job may fail as poison only after three crashes of its workers.
    """
    cancels = {command.record for command in history.commands if command.verb == "cancel"}
    for record in history.records:
        if record.state not in FINAL or (record.state == "cancelled" and record.id in cancels):
            continue
        poisoned = record.state == "failed" and record.error_type == "WorkerLost"
        if poisoned and record.crashes < MAX_CRASHES:
            yield Violation("outcomes are right", record.id, f"failed as poison after {record.crashes} crashes")
        elif not poisoned and record.state not in EXPECTED_STATES.get(record.job, {"succeeded"}):
            description = f"'{record.job}' {record.state} with {record.error_type}: {record.error_message}"
            yield Violation("outcomes are right", record.id, description)


def crashes_are_counted(history: History, bounds: Bounds) -> Iterator[Violation]:
    """The crashes of a record equal its lost attempts. A graceful stop is not a crash."""
    replayed = {command.record for command in history.commands if command.verb == "replay"}
    lost = Counter(ended.record for ended in history.attempts if ended.state == "lost")
    for record in history.records:
        if record.id not in replayed and record.crashes != lost[record.id]:
            description = f"{record.crashes} crashes are counted, but {lost[record.id]} attempts were lost"
            yield Violation("crashes are counted", record.id, description)


def workers_live(history: History, bounds: Bounds) -> Iterator[Violation]:
    """No worker ends by itself, whichever server is unavailable."""
    ends = {fault.pid for fault in history.faults if fault.kind in WORKER_ENDS}
    for exited in history.exits:
        if exited.pid not in ends:
            yield Violation("workers live", str(exited.pid), f"the worker ended by itself at {exited.at:.3f}")


def schedule_is_empty(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Redis holds no job that is final."""
    for record in history.scheduled:
        yield Violation("schedule is empty", record, "Redis still holds it")


RULES: dict[str, Rule] = {
    rule.__name__.replace("_", " "): rule
    for rule in (
        accepted_is_final,
        runs_once,
        runs_alone,
        one_finish,
        moves_are_legal,
        attempts_are_told,
        attempts_are_explained,
        transient_jobs_end,
        restarts_in_time,
        nothing_runs_early,
        effects_are_exactly_once,
        keys_lead_to_one_record,
        cancelled_stays_cancelled,
        outcomes_are_right,
        crashes_are_counted,
        workers_live,
        schedule_is_empty,
    )
}


def _overlaps(fault: Fault, since: float, until: float, kinds: frozenset[FaultKind]) -> bool:
    return fault.kind in kinds and fault.began <= until and fault.ended >= since


def _consecutive(runs: Iterable[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield each run with the next one of its job, by start time: transient runs have no consecutive numbers."""
    of_job: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        of_job[run.record].append(run)
    for job_runs in of_job.values():
        yield from pairwise(job_runs)


def _died_in(run: Run, death: Fault) -> bool:
    """Return whether the death of a worker ended this run."""
    return run.pid == death.pid and run.began <= death.began and (run.ended is None or run.ended > death.began)


def _since(began: dict[tuple[str, int], float], ended: AttemptOutcome, history: History) -> float:
    """Return when the previous attempt began that ran the job's code; else the time of the submission."""
    for attempt in range(ended.attempt - 1, 0, -1):
        if (ended.record, attempt) in began:
            return began[ended.record, attempt]
    return next((submit.at for submit in history.submits if submit.record == ended.record), float("-inf"))


def summary(records: tuple[Record, ...]) -> str:
    """Return the number of records by state, as text."""
    counts = Counter(record.state for record in records)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
