"""A trial: offenders run among innocents, and what became of all of them."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from re import DOTALL, search
from typing import Any
from uuid import UUID

from cplane import Handle, State
from cplane.errors import CplaneError
from cplane.postgres.models import JobRecord
from tests.neighbours.cases import Offender
from tests.neighbours.cluster import QUEUES, Cluster
from tests.neighbours.innocents import innocent_page, innocent_sleep, innocent_thread, innocents, probes
from tests.neighbours.judge import Attempt, Slots, ran_twice, read_attempts

DEADLINE_S = 75.0
CANCEL_S = 10.0
LATE_S = 5.0
WHOLE_S = 10.0
RECORDED_S = 1.0
AHEAD = 40
"""Innocents that are submitted before the offenders: they fill the slots of both workers."""

PROBE_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How an offender ended."""

    offender: Offender
    state: State
    type: str
    message: str

    @property
    def miss(self) -> str:
        """What is not as it should be; empty: nothing."""
        expected = self.offender
        survives = expected.kills and bool(expected.quick_args) and self.state is State.SUCCEEDED
        if self.state is not expected.state and not survives:
            return f"{expected.name}: {self.state}, not {expected.state}: {self.type} {self.message[:300]}"
        if not self.type.endswith(expected.type):
            return f"{expected.name}: {self.type}, not {expected.type}: {self.message[:300]}"
        if not search(expected.message, self.message, DOTALL):
            return f"{expected.name}: its message is {self.message[:300]!r}"
        return ""


@dataclass
class Report:
    """What became of the innocents and of the offenders in a trial."""

    innocents: int
    failed: list[str] = field(default_factory=list[str])
    interrupted: int = 0
    """Innocents that ran again, because their process died."""
    twice: list[str] = field(default_factory=list[str])
    """Innocents that ran again although it did not."""
    billed: list[str] = field(default_factory=list[str])
    """Innocents that a crash or a retry was counted for."""
    latest_s: float = 0.0
    """The longest that one waited while a slot was free."""
    latest: str = ""
    recorded_s: float = 0.0
    """The longest from the end of an innocent's code to the record of its outcome."""
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    whole_s: float = 0.0
    """From the offenders' end until every kind of job has run on two workers."""

    @property
    def has_bad_outcomes_alone(self) -> bool:
        """Whether the harm of all offenders is in what they return or raise."""
        return all(outcome.offender.is_bad_outcome for outcome in self.outcomes)

    def misses(self, factor: float = 1.0) -> list[str]:
        """Return what is not as it should be.

        Args:
            factor: how much slower than an idle machine this one may be.
        """
        found = [*(f"innocent failed: {each}" for each in self.failed), *(f"ran twice: {each}" for each in self.twice)]
        found += [f"innocent billed: {each}" for each in self.billed]
        found += [miss for outcome in self.outcomes if (miss := outcome.miss)]
        if self.latest_s > LATE_S * factor:
            found.append(f"{self.latest} started {self.latest_s:.1f} s later than it could have")
        if self.whole_s > WHOLE_S * factor:
            found.append(f"the workers were whole again after {self.whole_s:.1f} s")
        if self.has_bad_outcomes_alone and self.recorded_s > RECORDED_S * factor:
            found.append(f"an outcome was recorded {self.recorded_s:.1f} s after its job had ended")
        return found


async def run_trial(
    cluster: Cluster, offenders: Sequence[Offender], number: int, *, in_turn: bool = False, threads: bool = True
) -> Report:
    """Run offenders among a number of innocents.

    Args:
        cluster: the workers.
        offenders: who is submitted behind the first innocents.
        number: how many innocents there are.
        in_turn: whether an offender is submitted once the one before it has ended.
        threads: whether innocents run in threads, too.
    """
    report, since = Report(number), time.time()
    calls = innocents(number, cluster.url, threads=threads)
    handles = await cluster.submit(calls[:AHEAD])
    given = asyncio.create_task(run_offenders(cluster, offenders, in_turn=in_turn), name="run the offenders")
    handles += await cluster.submit(calls[AHEAD:])
    records = await given
    ends = [record.finished_at.timestamp() for record in records.values() if record.finished_at]
    died = [process.until for process in cluster.processes() if process.died]
    report.whole_s = await until_whole(cluster, max([*ends, *died]))
    spans = await asyncio.gather(*(outcome_of(handle, report) for handle in handles))
    attempts = await read_attempts(cluster, since)
    for offender, id_ in zip(offenders, records, strict=True):
        report.outcomes.append(describe(offender, records[id_], attempts[id_]))
    judge(
        report,
        cluster,
        dict(zip([handle.id for handle in handles], spans, strict=True)),
        attempts,
        blockers(offenders, records),
    )
    return report


async def run_offenders(cluster: Cluster, offenders: Sequence[Offender], *, in_turn: bool) -> dict[UUID, JobRecord]:
    """Submit the offenders, and return their records when all have ended. One that does not end is cancelled."""
    handles = list[Handle[Any]]()
    for offender in offenders:
        handles += await cluster.submit([offender.call(cluster.url, quick=cluster.quick)])
        if in_turn:
            await until_final(cluster, handles[-1])
    return {handle.id: await until_final(cluster, handle) for handle in handles}


async def until_final(cluster: Cluster, handle: Handle[Any]) -> JobRecord:
    """Wait until an offender has ended. One that does not is cancelled, and then its process is killed."""
    try:
        await cluster.plane.wait(handle.id, DEADLINE_S)
    except TimeoutError:
        await handle.cancel()
        await asyncio.sleep(CANCEL_S)
        record = await cluster.plane.record(handle.id)
        if record.state is State.RUNNING and record.worker:
            with suppress(ProcessLookupError):
                os.kill(cluster.pid_of(record.worker), signal.SIGKILL)
        await cluster.plane.wait(handle.id, DEADLINE_S)
    return await cluster.plane.record(handle.id)


def blockers(offenders: Sequence[Offender], records: dict[UUID, JobRecord]) -> list[UUID]:
    return [id_ for offender, id_ in zip(offenders, records, strict=True) if offender.blocks]


def describe(offender: Offender, record: JobRecord, attempts: Sequence[Attempt]) -> Outcome:
    """Return how an offender ended. One that survives in the end has the error of its last failed attempt."""
    errors = [attempt for attempt in attempts if attempt.error_type]
    if errors and offender.kills:
        return Outcome(offender, record.state, errors[-1].error_type or "", errors[-1].error_message or "")
    if record.state is State.SUCCEEDED:
        shown = record.result if isinstance(record.result, str) else repr(record.result)
        return Outcome(offender, record.state, "", shown)
    return Outcome(offender, record.state, record.error_type or "", record.error_message or "")


async def outcome_of(handle: Handle[Any], report: Report) -> Any:
    """Return the result of an innocent, or None if it failed."""
    try:
        return await handle.result(DEADLINE_S)
    except (CplaneError, TimeoutError) as error:
        report.failed.append(f"{handle!r}: {type(error).__name__} {error}"[:400])
        return None


async def until_whole(cluster: Cluster, since: float) -> float:
    """Run jobs of each kind until two workers have run them all. Returns the seconds since a time, at most 30."""
    wanted = 2 * len(probes(cluster.url))
    seen = set[tuple[str, str]]()
    while time.time() < since + 3 * WHOLE_S:
        calls = probes(cluster.url) * 2
        handles = await cluster.submit(calls, queue="probe")
        records = [await cluster.plane.wait(handle.id, DEADLINE_S) for handle in handles]
        done = [record for record in records if isinstance(record, JobRecord) and record.state is State.SUCCEEDED]
        seen |= {(record.job, record.worker or "") for record in done}
        alive = {each.name for each in cluster.processes() if each.until == float("inf") and not each.is_quarantine}
        if len([each for each in seen if each[1] in alive]) >= wanted:
            break
        await asyncio.sleep(PROBE_INTERVAL_S)
    return max(0.0, time.time() - since)


TIMED = {innocent_sleep.name, innocent_thread.name, innocent_page.name}
"""Innocents whose result says when their code ran."""


def judge(
    report: Report,
    cluster: Cluster,
    results: dict[UUID, Any],
    attempts: dict[UUID, list[Attempt]],
    blocking: Sequence[UUID],
) -> None:
    """Judge the innocents by their results and attempts."""
    processes = cluster.processes()
    dead = {process.name for process in processes if process.died}
    slots = Slots(attempts, processes, blocking, QUEUES)
    late = slots.late()
    for id_, result in results.items():
        if not (own := attempts.get(id_, [])):
            continue
        if why := ran_twice(own, dead):
            report.twice.append(f"{own[0].job} {id_}: {why}")
        if own[-1].crashes or own[-1].failures:
            report.billed.append(f"{own[0].job} {id_}: {own[-1].crashes} crashes, {own[-1].failures} failures")
        report.interrupted += len(own) > 1
        late_s, where = late[id_], "in its queue"
        if own[0].job in TIMED and result is not None:
            began, ended = result
            late_s, where = max((late_s, where), (slots.held_up_s(own[-1], began), f"on {own[-1].worker}"))
            report.recorded_s = max(report.recorded_s, own[-1].finished - ended)
        if late_s > report.latest_s:
            report.latest_s, report.latest = late_s, f"{own[0].job} {id_} {where}"
