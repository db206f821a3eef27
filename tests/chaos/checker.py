"""The judge: what a history must never show. Pure; it sees values alone, and every rule is shown to fail in test_checker.py.

A rule is a generator of violations. Times are judged as they are promised, by `Bounds`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import FINAL, Ended, Fault, FaultKind, History, Record, Run

LEGAL: dict[str | None, set[str]] = {
    None: {"queued"},
    "queued": {"queued", "running", "cancelled"},
    "running": {"running", "queued", "succeeded", "failed", "cancelled"},
    "succeeded": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}
"""Moves of a record, replays aside. Written down a second time on purpose: the suite does not ask the product what is right."""

EXPLAINS: dict[str, frozenset[FaultKind]] = {
    "lost": frozenset(FaultKind) - {FaultKind.REDIS, FaultKind.CLOCK, FaultKind.STOP},
    "release": frozenset({FaultKind.STOP}),
    "infrastructure": frozenset(
        {FaultKind.POSTGRES, FaultKind.REDIS, FaultKind.PARTITION, FaultKind.CALL, FaultKind.FREEZE}
    ),
}
"""Which faults may be behind another attempt. Losing Redis, setting a clock or a deploy must never cost a lease.

The deadline of a job's own call passes while its process is frozen: woken, it may notice that before its lost lease.
"""

AGAIN = EXPLAINS["lost"] | {FaultKind.REDIS, FaultKind.STOP}
"""Which faults may be behind another run of a job without a record: Redis alone knows of it."""

DEATHS = frozenset({FaultKind.KILL, FaultKind.CRASH, FaultKind.POISON})

CLEANUP_S = 5.0

CUT_OFF = frozenset({FaultKind.PARTITION})
HELD = frozenset({FaultKind.FREEZE, FaultKind.BLOCK, FaultKind.STALL})
"""When a worker cannot stop what it runs, because it does not run itself."""

LEAVES = DEATHS | {FaultKind.STOP}

SETTLES: dict[str, frozenset[str]] = {
    "chaos_fails": frozenset({"failed"}),
    "chaos_poison": frozenset({"failed"}),
}
"""How jobs end that nobody cancels; every other one succeeds."""

MAX_CRASHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What times are judged by, in seconds."""

    lease_s: float
    restart_s: float = 5.0
    """After the lease of a dead worker has ended, its jobs start again within this."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, by which record, and how."""

    rule: str
    record: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.record}: {self.what}"


Rule = Callable[[History, Bounds], Iterator[Violation]]


def check(history: History, bounds: Bounds) -> list[Violation]:
    """Every violation of every rule."""
    return [violation for rule in RULES.values() for violation in rule(history, bounds)]


def accepted_is_final(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Every acknowledged job has a record, and every record is final once everything is healed."""
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
    """An attempt has ended before the next begins: a worker stops what it can no longer trust, if it is let.

    A job that is stopped within a call to a Postgres that is cut off ends when its driver gives the call up, within what a stopped job
    gets to clean up (CLEANUP_S of `cplane/attempt.py`); what it wrote is not committed all the same.
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
        mine = [fault for fault in history.faults if fault.pid == run.pid]
        if not any(_overlaps(fault, run.began, min(after), HELD | DEATHS) for fault in mine):
            yield Violation("runs alone", run.record, f"attempt {run.attempt} still ran when the next began")


def one_finish(history: History, bounds: Bounds) -> Iterator[Violation]:
    """One attempt is told that it finished a record, the highest, and the result is its."""
    attempts: dict[str, set[int]] = defaultdict(set)
    for accepted in history.accepted:
        if accepted.state in FINAL:
            attempts[accepted.record].add(accepted.attempt)
    replayed = Counter(steer.record for steer in history.steers if steer.verb == "replay")
    for record in history.records:
        told = attempts[record.id]
        if len(told) > 1 + replayed[record.id]:
            yield Violation("one finish", record.id, f"attempts {sorted(told)} were each told that they finished it")
        if told and max(told) > record.attempt:
            yield Violation("one finish", record.id, f"finished by attempt {max(told)}, but it knows {record.attempt}")
        if record.state == "succeeded" and record.result_attempt not in {None, record.attempt}:
            what = f"its result is of attempt {record.result_attempt}, the highest is {record.attempt}"
            yield Violation("one finish", record.id, what)


def moves_are_legal(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Final is final unless replayed; an attempt is counted when it starts, by one, and never otherwise."""
    replays = Counter(steer.record for steer in history.steers if steer.verb == "replay")
    state: dict[str, str | None] = defaultdict(lambda: None)
    attempt: dict[str, int] = defaultdict(int)
    for move in history.moves:
        old, record = state[move.record], move.record
        if old in FINAL and move.new == "queued" and move.cause == "replay" and old != "succeeded":
            replays[record] -= 1
            if replays[record] < 0:
                yield Violation("moves are legal", record, f"{old} → queued as a replay that nobody asked for")
        elif move.new not in LEGAL[old]:
            yield Violation("moves are legal", record, f"{old} → {move.new} (attempt {move.attempt})")
        counted = old == "queued" and move.new == "running"
        if move.attempt != attempt[record] + counted:
            yield Violation(
                "moves are legal", record, f"{old} → {move.new}: attempt {attempt[record]} → {move.attempt}"
            )
        state[record], attempt[record] = move.new, move.attempt


def attempts_are_told(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A final record tells every attempt, 1 to the highest, each of them ended; and nothing ran that it does not tell."""
    told: dict[str, list[Ended]] = defaultdict(list)
    for ended in history.attempts:
        told[ended.record].append(ended)
    for record in history.records:
        attempts = sorted(told[record.id], key=lambda ended: ended.attempt)
        if [ended.attempt for ended in attempts] != list(range(1, record.attempt + 1)):
            what = f"it made {record.attempt} attempts and tells {[ended.attempt for ended in attempts]}"
            yield Violation("attempts are told", record.id, what)
        for ended in attempts:
            if record.state in FINAL and ended.state == "running":
                yield Violation("attempts are told", record.id, f"attempt {ended.attempt} is told to be running")
    known = {(ended.record, ended.attempt) for ended in history.attempts}
    for run in history.runs:
        if (run.record, run.attempt) not in known:
            yield Violation("attempts are told", run.record, f"attempt {run.attempt} ran and is not told")


def attempts_are_explained(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Every attempt after the first has a cause, and the cause has a fault of its kind between the two starts."""
    began = {(run.record, run.attempt): run.began for run in history.runs}
    failures = {record.id: record.failures for record in history.records}
    replayed = Counter(steer.record for steer in history.steers if steer.verb == "replay")
    for ended in history.attempts:
        if (ended.attempt == 1) != (ended.cause == "submit") and not (ended.attempt == 1 and replayed[ended.record]):
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt} by '{ended.cause}'")
        elif ended.cause == "retry" and not failures[ended.record] and not replayed[ended.record]:
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt}: it never failed")
        elif ended.cause == "replay" and not replayed[ended.record]:
            yield Violation("attempts are explained", ended.record, f"attempt {ended.attempt}: nobody replayed it")
        elif ended.cause in EXPLAINS:
            since = _since(began, ended, history)
            until = began.get((ended.record, ended.attempt), float("inf"))
            if not any(_overlaps(fault, since, until, EXPLAINS[ended.cause]) for fault in history.faults):
                what = f"attempt {ended.attempt} by '{ended.cause}' without a fault from {since:.3f} to {until:.3f}"
                yield Violation("attempts are explained", ended.record, what)


def transient_jobs_end(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A job without a record succeeds as well, as long as Redis keeps its memory and not three of its workers die; it runs again after a fault."""
    for job in history.transients:
        forgotten = any(fault.kind is FaultKind.REDIS and fault.ended >= job.at for fault in history.faults)
        deaths = sum(fault.kind in EXPLAINS["lost"] and fault.ended >= job.at for fault in history.faults)
        poisoned = job.state == "failed" and deaths >= MAX_CRASHES
        if job.state != "succeeded" and not forgotten and not poisoned:
            yield Violation("transient jobs end", job.id, f"it is {job.state or 'forgotten'}")
    for run, again in _following(history.transient_runs):
        if not any(_overlaps(fault, run.began, again.began, AGAIN) for fault in history.faults):
            what = f"it ran at {run.began:.3f} and again at {again.began:.3f} without a fault"
            yield Violation("transient jobs end", run.record, what)


def restarts_in_time(history: History, bounds: Bounds) -> Iterator[Violation]:
    """What a dead worker ran starts again within lease + 5 s, as long as nothing else is broken meanwhile."""
    within_s = bounds.lease_s + bounds.restart_s
    began = {(run.record, run.attempt): run for run in history.runs}
    restarts = [(run, began.get((run.record, run.attempt + 1))) for run in history.runs]
    restarts += _following(history.transient_runs)
    deaths = sorted((fault for fault in history.faults if fault.kind in LEAVES), key=lambda fault: fault.began)
    for death in deaths:
        until = death.began + within_s
        for other in deaths:  # who took it up may have died in turn
            if death.began < other.began < until:
                until = other.began + within_s
        if any(_overlaps(fault, death.began, until, frozenset(FaultKind) - LEAVES) for fault in history.faults):
            continue
        for run, again in restarts:
            if death.kind in DEATHS and _died_in(run, death) and again is not None and again.began > until:
                after_s = again.began - death.began
                what = f"attempt {run.attempt} died at {death.began:.3f}, the next began {after_s:.2f} s later"
                yield Violation("restarts in time", run.record, what)


def nothing_runs_early(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A job with a delay does not begin before it is due, unless it is replayed. A tenth of a second is what the product itself allows."""
    replayed = {steer.record: steer.at for steer in reversed(history.steers) if steer.verb == "replay"}
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
    """What a job writes in its transaction is there once if it succeeded, and not at all otherwise."""
    for record in history.records:
        if record.job == "chaos_writes":
            wanted = int(record.state == "succeeded")
            if (count := history.effects.get(record.id, 0)) != wanted:
                yield Violation("effects are exactly once", record.id, f"{record.state}, written {count} times")


def keys_lead_to_one_record(history: History, bounds: Bounds) -> Iterator[Violation]:
    """The same idempotency key is the same record, however often it was sent and whatever was answered."""
    tags = {submit.tag for submit in history.submits if submit.key is not None}
    for tag, count in Counter(record.tag for record in history.records).items():
        if tag in tags and count > 1:
            yield Violation("keys lead to one record", tag, f"one key made {count} records")
    answered: dict[str, set[str]] = defaultdict(set)
    for submit in history.submits:
        if submit.key is not None and submit.record is not None:
            answered[submit.key].add(submit.record)
    for key, records in answered.items():
        if len(records) > 1:
            yield Violation("keys lead to one record", key, f"one key was answered {len(records)} records")


def cancelled_stays_cancelled(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A record that was cancelled while it was queued does not run after that."""
    records = {record.id: record for record in history.records}
    for steer in history.steers:
        if (
            steer.verb != "cancel"
            or steer.state != "cancelled"
            or any(other.verb == "replay" and other.record == steer.record for other in history.steers)
        ):
            continue
        if (record := records.get(steer.record)) is not None and record.state != "cancelled":
            yield Violation("cancelled stays cancelled", record.id, f"it {record.state}")
        late = [run.attempt for run in history.runs if run.record == steer.record and run.began > steer.at]
        if late:
            yield Violation("cancelled stays cancelled", steer.record, f"attempts {late} began after the cancel")


def outcomes_are_right(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Jobs end as they were written to; one whose workers died three times may fail for that, and only then."""
    cancels = {steer.record for steer in history.steers if steer.verb == "cancel"}
    for record in history.records:
        if record.state not in FINAL or (record.state == "cancelled" and record.id in cancels):
            continue
        poisoned = record.state == "failed" and record.error_type == "WorkerLost"
        if poisoned and record.crashes < MAX_CRASHES:
            yield Violation("outcomes are right", record.id, f"failed as poison after {record.crashes} crashes")
        elif not poisoned and record.state not in SETTLES.get(record.job, {"succeeded"}):
            what = f"'{record.job}' {record.state} with {record.error_type}: {record.error_message}"
            yield Violation("outcomes are right", record.id, what)


def crashes_are_counted(history: History, bounds: Bounds) -> Iterator[Violation]:
    """A record's crashes are its lost attempts; a graceful stop is none."""
    replayed = {steer.record for steer in history.steers if steer.verb == "replay"}
    lost = Counter(ended.record for ended in history.attempts if ended.state == "lost")
    for record in history.records:
        if record.id not in replayed and record.crashes != lost[record.id]:
            what = f"{record.crashes} crashes are counted, {lost[record.id]} attempts were lost"
            yield Violation("crashes are counted", record.id, what)


def workers_live(history: History, bounds: Bounds) -> Iterator[Violation]:
    """No worker ends by itself, whatever is away."""
    ends = {fault.pid for fault in history.faults if fault.kind in LEAVES}
    for gone in history.exits:
        if gone.pid not in ends:
            yield Violation("workers live", str(gone.pid), f"the worker ended by itself at {gone.at:.3f}")


def schedule_is_empty(history: History, bounds: Bounds) -> Iterator[Violation]:
    """Redis holds nothing of what is final."""
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


def _following(runs: Iterable[Run]) -> Iterator[tuple[Run, Run]]:
    """Each run with the next of the same job, by the times they began: those of transient jobs are not numbered one by one."""
    of_job: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        of_job[run.record].append(run)
    for mine in of_job.values():
        yield from pairwise(mine)


def _died_in(run: Run, death: Fault) -> bool:
    """Whether the death of a worker ended this run."""
    return run.pid == death.pid and run.began <= death.began and (run.ended is None or run.ended > death.began)


def _since(began: dict[tuple[str, int], float], ended: Ended, history: History) -> float:
    """When the attempt before began; one that never came to run its job is as old as the last that did, or the submission."""
    for attempt in range(ended.attempt - 1, 0, -1):
        if (ended.record, attempt) in began:
            return began[ended.record, attempt]
    return next((submit.at for submit in history.submits if submit.record == ended.record), float("-inf"))


def summary(records: tuple[Record, ...]) -> str:
    """How many records ended in which state."""
    counts = Counter(record.state for record in records)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
