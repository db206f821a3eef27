"""The rescue: renews the leases of a blocked worker process, and requeues what was aboard of one that died.

What it needs for that is imported by the one who opens it: the keeper stays small until something happens.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

from redis.asyncio import Redis

from cplane.jobs.names import quarantine_of, without_quarantine
from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES, State
from cplane.keeper.blame import Death, Verdict, explain, judge
from cplane.keeper.channel import Hello
from cplane.keeper.log import log
from cplane.keeper.manifest import Entry
from cplane.keeper.servers import Servers
from cplane.postgres.driver import DriverConnection
from cplane.postgres.statements import RENEW, RESCUE, STARTED_BY
from cplane.redis.connection import connect
from cplane.redis.envelope import Envelope, decode_envelope, next_envelope
from cplane.redis.events import Event, Events
from cplane.redis.messages import Ack, Disposition, Renewal
from cplane.redis.queue import Queue

GUILTY = frozenset({Verdict.CRASH, Verdict.TIMED_OUT, Verdict.GAVE_UP})


class Rescued(NamedTuple):
    """What became of a record whose worker died."""

    state: State
    queue: str
    """Where it waits: the queue of its job, or its quarantine."""


class Rescue:
    """Postgres and Redis, for attempts of worker processes that cannot help themselves."""

    def __init__(self, postgres: DriverConnection, redis: Redis, lease_s: float) -> None:
        self._postgres = postgres
        self._queue = Queue(redis)
        self._events = Events(redis)
        self._lease_s = lease_s

    async def renew(self, entries: Sequence[Entry]) -> set[int]:
        """Renew leases in both stores.

        Returns:
            The numbers of the attempts that still own theirs. Where there is a record, Postgres decides.

        Raises:
            DatabaseUnavailable, QueueUnavailable: nothing is known of the leases.
        """
        recorded = [entry for entry in entries if entry.recorded]
        others = [entry for entry in entries if not entry.recorded]
        owned = set[int]()
        if recorded:
            held = {(row[0], row[1]) for row in await self._postgres.fetch(RENEW, _renewals(recorded, self._lease_s))}
            owned = {entry.seq for entry in recorded if (UUID(entry.lease.id), entry.attempt) in held}
        renewals = await self._queue.renew([entry.lease for entry in (*recorded, *others)], self._lease_s)
        for entry, renewal in zip(others, renewals[len(recorded) :], strict=True):
            if renewal in {Renewal.RENEWED, Renewal.ABORT_WANTED}:
                owned.add(entry.seq)
        return owned

    async def requeue(self, entries: Sequence[Entry], death: Death) -> int:
        """Requeue what was aboard of a process that died, at once, and bill the crash to who caused it.

        Returns:
            How many attempts were aboard. Those that had ended just before are not counted.

        Raises:
            DatabaseUnavailable, QueueUnavailable: what was not done comes back when the leases end.
        """
        owned = await self.renew(entries)
        aboard = [entry for entry in entries if entry.seq in owned]
        if not aboard:
            return 0
        verdicts = judge(aboard, death)
        guilty = next((entry.job for entry in aboard if verdicts[entry.seq] in GUILTY), "")
        rescued = await self._record([e for e in aboard if e.recorded], verdicts, death, guilty)
        acks = [_ack_of_record(entry, rescued) for entry in aboard if entry.recorded]
        acks += [await self._ack_of_transient(entry, verdicts[entry.seq]) for entry in aboard if not entry.recorded]
        await self._queue.ack(acks)
        await self._events.publish([Event(id_, found.state, attempt) for (id_, attempt), found in rescued.items()])
        log(
            "attempts_requeued",
            count=len(aboard),
            process=death.described,
            blamed=guilty or None,
            attempts=[f"{entry.job} {entry.lease.id}" for entry in aboard[:10]],
        )
        return len(aboard)

    async def quarantined(self, queues: Iterable[str]) -> list[str]:
        """Return the queues of which jobs are due that must run alone."""
        due = [queue for queue in queues if (await self._queue.stats(quarantine_of(queue))).ready]
        return [without_quarantine(queue) for queue in due]

    async def release_unboarded(self, hello: Hello, entries: Sequence[Entry], *, dead: bool) -> int:
        """Requeue what a worker leased but has not begun to run: its code has done nothing, so it pays nothing.

        Args:
            hello: what the worker said of itself.
            entries: what has begun to run.
            dead: whether the worker has died. One that is blocked keeps the records that it has started.

        Returns:
            How many were requeued.
        """
        for queue in hello.queues:
            await self._queue.nudge(queue, hello.prefix)  # a claim that sleeps must not take what comes now
        boarded = {entry.lease.id for entry in entries}
        if dead:
            await self._release_started(hello, [UUID(entry.lease.id) for entry in entries if entry.recorded])
        leases = [
            lease
            for queue in hello.queues
            for lease in await self._queue.leases_of(queue, hello.prefix)
            if lease.id not in boarded
        ]
        if leases:
            await self._queue.ack([Ack(lease, Disposition.POSTPONE) for lease in leases])
            log("leases_released", count=len(leases), worker=hello.name)
        return len(leases)

    async def _release_started(self, hello: Hello, boarded: Sequence[UUID]) -> None:
        rows = await self._postgres.fetch(STARTED_BY, {"worker": hello.name, "ids": list(boarded)})
        if not rows:
            return
        values = {
            "ids": [row[0] for row in rows],
            "attempts": [row[1] for row in rows],
            "tokens": [row[2] for row in rows],
            "verdicts": [Verdict.RELEASED.value] * len(rows),
            "error_types": ["WorkerLost"] * len(rows),
            "error_messages": ["its worker process ended before its code began"] * len(rows),
            "max_crashes": MAX_CRASHES,
        }
        await self._postgres.fetch(RESCUE, values)

    async def _record(
        self, entries: Sequence[Entry], verdicts: dict[int, Verdict], death: Death, guilty: str
    ) -> dict[tuple[UUID, int], Rescued]:
        """Record the end of attempts in Postgres. Returns what became of their records."""
        if not entries:
            return {}
        errors = [explain(entry, verdicts[entry.seq], death, guilty) for entry in entries]
        values = {
            **_fences(entries),
            "verdicts": [verdicts[entry.seq].value for entry in entries],
            "error_types": [type_ for type_, _ in errors],
            "error_messages": [message for _, message in errors],
            "max_crashes": MAX_CRASHES,
        }
        rows = await self._postgres.fetch(RESCUE, values)
        return {(row[0], row[1]): Rescued(State(row[2]), row[3]) for row in rows}

    async def _ack_of_transient(self, entry: Entry, verdict: Verdict) -> Ack:
        """A crash is counted by its try, and in the envelope who caused it; else the try is not counted."""
        envelope = await self._envelope(entry) if verdict in {Verdict.CRASH, Verdict.UNKNOWN} else None
        if envelope is None:
            return Ack(entry.lease, Disposition.RETRY) if verdict is Verdict.CRASH else Ack.release(entry.lease)
        if verdict is Verdict.CRASH:
            payload = next_envelope(envelope, crashes=envelope.crashes + 1)
        else:
            payload = next_envelope(envelope, suspicions=envelope.suspicions + 1)
        crashes = entry.lease.tries - envelope.failures - envelope.interruptions
        return Ack(entry.lease, Disposition.QUARANTINE if crashes >= ALONE_AFTER else Disposition.RETRY, text=payload)

    async def _envelope(self, entry: Entry) -> Envelope | None:
        payload = entry.lease.payload or (await self._queue.read_job(entry.lease.id)).payload
        try:
            return decode_envelope(payload) if payload else None
        except ValueError:
            return None


@asynccontextmanager
async def open_rescue(servers: Servers) -> AsyncGenerator[Rescue]:
    """Open a rescue; it connects when it is first used."""
    async with DriverConnection(servers.postgres) as postgres, connect(servers.redis_url) as redis:
        yield Rescue(postgres, redis, servers.lease_s)


def _fences(entries: Iterable[Entry]) -> dict[str, Any]:
    entries = list(entries)
    return {
        "ids": [UUID(entry.lease.id) for entry in entries],
        "attempts": [entry.attempt for entry in entries],
        "tokens": [entry.lease.token for entry in entries],
    }


def _renewals(entries: Sequence[Entry], lease_s: float) -> dict[str, Any]:
    return {**_fences(entries), "dones": [], "totals": [], "notes": [], "lease_s": lease_s}


def _ack_of_record(entry: Entry, rescued: dict[tuple[UUID, int], Rescued]) -> Ack:
    found = rescued.get((UUID(entry.lease.id), entry.attempt))
    if found is None:
        return Ack(entry.lease, Disposition.RETRY)
    if found.state is not State.QUEUED:
        return Ack(entry.lease, Disposition.DONE)
    is_alone = found.queue == quarantine_of(found.queue)
    return Ack(entry.lease, Disposition.QUARANTINE if is_alone else Disposition.RETRY)
