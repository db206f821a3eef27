"""Claiming: takes as many jobs of one queue as there is room for, starts their records, and hands each on as an attempt."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from cplane.attempt import Attempt
from cplane.endings import first
from cplane.errors import CplaneError, DatabaseUnavailable, OutsideError, SchemaMismatch
from cplane.jobs import Registry
from cplane.leases import Leases
from cplane.pages import Pages
from cplane.queue import Action, Grant, Queue, Return, decode_envelope
from cplane.states import State
from cplane.store import Started, Store

SLOW_POLL_S = 3.0
"""How often a sleeping worker looks without being woken: a plain arq client wakes nobody."""

UNKNOWN_JOB_S = 15.0
"""A job that this worker cannot run goes back for so long; another worker may know it."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What the claimers of one worker share."""

    worker: str
    store: Store
    queue: Queue
    jobs: Registry
    leases: Leases
    pages: Pages
    lease_s: float
    stopping: asyncio.Event
    begin: Callable[[Attempt], None]
    """Runs an attempt; `Claimer.leave` is called when it is over."""
    idle: Callable[[], Awaitable[None]]
    """Called when a queue had nothing to claim."""


class Claimer:
    """One queue and its room: `concurrency` jobs at once, and for jobs with pages only as many as there are pages free."""

    def __init__(self, queue: str, concurrency: int, claims: Claims) -> None:
        self._queue = queue
        self._concurrency = concurrency
        self._shared = claims
        self._running = 0
        self._left = asyncio.Event()

    async def run(self) -> None:
        """Claim, start, repeat, until stopped; sleep while there is nothing. No outage ends it."""
        pause_s = FIRST_PAUSE_S
        while not self._shared.stopping.is_set():
            try:
                room = await self._wait_room()
                if room and not self._shared.stopping.is_set():
                    await self._claim(room)
                pause_s = FIRST_PAUSE_S
            except (OutsideError, SchemaMismatch) as error:
                log.warning("jobs cannot be claimed; trying again", queue=self._queue, reason=str(error))
                await first(asyncio.sleep(pause_s), self._shared.stopping.wait())
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def leave(self) -> None:
        """An attempt is over: there is room for another."""
        self._running -= 1
        self._left.set()

    async def _wait_room(self) -> int:
        """How many more jobs fit; waits until one does."""
        shared = self._shared
        while not shared.stopping.is_set():
            self._left.clear()
            room = self._concurrency - self._running
            if room > 0 and not shared.jobs.needs_pages(self._queue):
                return room
            pages = shared.pages.free - sum(attempt.waits_for_page for attempt in shared.leases)
            if min(room, pages) > 0:
                return min(room, pages)
            waiting = [self._left.wait(), shared.stopping.wait()]
            if room > 0 and shared.pages.free == 0:
                await first(*waiting, shared.pages.wait_free())
            else:
                await first(*waiting)
        return 0

    async def _claim(self, room: int) -> None:
        shared = self._shared
        sent = time.monotonic()
        claim = await shared.queue.claim(self._queue, room, shared.lease_s)
        if claim.grants:
            await self._start(claim.grants, sent)
            return
        await shared.idle()
        if not claim.missing and claim.wait_s != 0:
            longest_s = SLOW_POLL_S if claim.wait_s is None else min(claim.wait_s, SLOW_POLL_S)
            await first(shared.queue.sleep(self._queue, longest_s), shared.stopping.wait())

    async def _start(self, grants: Sequence[Grant], sent: float) -> None:
        """Start the records of grants and begin each that is ours; the others are settled with Redis."""
        shared = self._shared
        known, refused = self._sort(grants)
        started = await self._start_records(known) if known else []
        for record in started:
            trusted_until = shared.leases.trusted_until(sent)
            attempt = Attempt(record, known.pop(record.id), self._queue, shared.jobs.get(record.job), trusted_until)
            shared.leases.add(attempt)
            self._running += 1
            shared.begin(attempt)
        refused += await self._settle(known) if known else []
        if refused:
            await shared.queue.finish(refused)

    def _sort(self, grants: Sequence[Grant]) -> tuple[dict[UUID, Grant], list[Return]]:
        """Grants of records whose job we know, and the others on their way back; nothing is deleted for being unknown."""
        known: dict[UUID, Grant] = {}
        refused: list[Return] = []
        for grant in grants:
            try:
                self._shared.jobs.get(str(decode_envelope(grant.payload)["f"]))
                known[UUID(grant.id)] = grant
            except (ValueError, CplaneError) as error:
                fields = {"id": grant.id[:100], "queue": self._queue, "reason": str(error)}
                log.warning("a queued job cannot be run here; it goes back", **fields)
                refused.append(Return(self._queue, grant.id, grant.token, Action.RETRY, int(UNKNOWN_JOB_S * 1000)))
        return known, refused

    async def _start_records(self, grants: Mapping[UUID, Grant]) -> list[Started]:
        """Start in Postgres; a lost reply is answered by asking again with the same tokens, until the leases are half over."""
        shared = self._shared
        until = time.monotonic() + shared.lease_s / 2
        tokens = [(record_id, grant.token) for record_id, grant in grants.items()]
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await shared.store.start(shared.worker, tokens, shared.lease_s)
            except (DatabaseUnavailable, SchemaMismatch):
                if time.monotonic() + pause_s > until or shared.stopping.is_set():
                    await self._release(grants.values())
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _release(self, grants: Iterable[Grant]) -> None:
        """Hand grants back to where they stood in the queue."""
        back = [Return(self._queue, grant.id, grant.token, Action.RELEASE, grant.due_ms) for grant in grants]
        await self._shared.queue.finish(back)

    async def _settle(self, grants: Mapping[UUID, Grant]) -> list[Return]:
        """What Redis is told of ids whose record could not be started: final ones leave it, the others come back when due."""
        standings = await self._shared.store.standing(list(grants))
        returns: list[Return] = []
        for record_id, grant in grants.items():
            standing = standings.get(record_id)
            if standing is None or standing.state.final:
                returns.append(Return(self._queue, grant.id, grant.token, Action.DONE))
            else:  # not due yet, or running elsewhere: a second after its lease has ended the reconciler has seen it
                wait_ms = standing.due_in_ms + (1000 if standing.state is State.RUNNING else 1)
                returns.append(Return(self._queue, grant.id, grant.token, Action.RETRY, wait_ms))
        return returns
