"""The recorder: takes outcomes from the runner, records them in Postgres, acknowledges them in Redis, publishes them, and completes them."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, cast

import msgspec
import structlog

from cplane.errors import DatabaseUnavailable, QueueUnavailable, SchemaMismatch
from cplane.jobs.states import State
from cplane.postgres.store import Store
from cplane.redis.connection import is_refusal
from cplane.redis.envelope import now_ms
from cplane.redis.events import Events
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.worker.acknowledgements import Acknowledgements, Ended, Packed
from cplane.worker.attempt import AnyFence, Attempt
from cplane.worker.completions import Completions
from cplane.worker.delivery import LARGE_BYTES, Delivery
from cplane.worker.outcome import Outcome

log = structlog.get_logger("cplane")


class Recorder:
    """Records outcomes in two stages: one batch is in flight in Postgres while the one before is in flight in Redis.

    An outcome that a server refuses fails its own attempt. The batch is halved until it stands alone; the others are recorded.
    Large outcomes have lanes of their own in both stages.

    Args:
        store: Postgres.
        queue: Redis.
        events: tells the waiters.
        completions: takes attempts that are recorded everywhere.
        acknowledgements: says how leases leave Redis.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        events: Events,
        completions: Completions,
        acknowledgements: Acknowledgements,
    ) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._completions = completions
        self._acknowledgements = acknowledgements
        record: Delivery[Ended, State | None] = Delivery(
            "outcomes_not_recorded",
            self._record,
            outages=(DatabaseUnavailable, SchemaMismatch),
            ping=store.epoch,
            done=self._recorded,
            replace=self._replace_record,
            goes_on=self._goes_on_recording,
        )
        self._acknowledge: Delivery[Packed, None] = Delivery(
            "outcomes_not_acknowledged",
            self._send_acks,
            outages=(QueueUnavailable,),
            ping=queue.ping,
            done=self._acknowledged,
            replace=self._replace_ack,
            goes_on=self._goes_on_acknowledging,
        )
        self._outcomes: Batch[Ended, None] = Batch(record, name="record outcomes")
        self._large_outcomes: Batch[Ended, None] = Batch(record, name="record large outcomes")
        self._acks: Batch[Ended, None] = Batch(self._pack_and_acknowledge, name="acknowledge leases")
        self._large_acks: Batch[Packed, None] = Batch(self._acknowledge, name="acknowledge large results")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for lane in (self._large_acks, self._acks, self._large_outcomes, self._outcomes):
            await self._open.enter_async_context(lane)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def post(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record an outcome with the next batch. What needs no record, or has it, goes straight to Redis."""
        ended = Ended(attempt, outcome, outcome.state)
        if not attempt.job.is_recorded or outcome.recorded:
            self._acks.post(ended)
        elif ended.size < LARGE_BYTES:
            self._outcomes.post(ended)
        else:
            self._large_outcomes.post(ended)

    def drop(self, attempt: Attempt) -> None:
        """End an attempt that has no outcome: its lease was lost."""
        self._completions.drop(attempt)

    # the first stage: Postgres. During an outage it is retried for as long as the leases can be trusted

    async def _record(self, batch: Sequence[Ended]) -> list[State | None]:
        """Return the states of the records afterwards; None: the record was no longer this attempt's."""
        finishes = [ended.attempt.finish(ended.outcome) for ended in batch]
        states = cast("Mapping[AnyFence, State]", await self._store.finish(finishes))
        return [states.get(ended.attempt.fence) for ended in batch]

    def _recorded(self, ended: Ended, state: State | None) -> None:
        if state is None:
            self._completions.drop(ended.attempt)
        else:
            self._acks.post(ended if state is ended.state else msgspec.structs.replace(ended, state=state))

    def _replace_record(self, ended: Ended, error: Exception) -> Ended | None:
        if not ended.refused:
            return ended.as_refused("Postgres", error)
        log.error(
            "failure_not_recorded", record=ended.attempt.lease.id, exc_info=error, hint="the lease ends by itself"
        )
        self._completions.drop(ended.attempt)
        return None

    def _goes_on_recording(self, ended: Ended) -> bool:
        trusted = _is_trusted(ended)
        if not trusted:
            self._completions.drop(ended.attempt)
        return trusted

    # the second stage: Redis, then the waiters. A record is final in any case: Redis hands its id out again when the lease has ended,
    # and the record refuses to start. The results of jobs without a record are retried for as long as the leases can be trusted

    async def _pack_and_acknowledge(self, batch: Sequence[Ended]) -> list[None]:
        now, small = now_ms(), list[Packed]()
        for ended in batch:
            packed = self._acknowledgements.pack(ended, now)
            if packed.size < LARGE_BYTES:
                small.append(packed)
            else:
                self._large_acks.post(packed)
        await self._acknowledge(small)
        return [None] * len(batch)

    async def _send_acks(self, batch: Sequence[Packed]) -> list[None]:
        try:
            await self._queue.ack([packed.ack for packed in batch])
            await self._events.publish([packed.event for packed in batch])
        except QueueUnavailable as error:
            if is_refusal(error) and error.__cause__ is not None:
                raise error.__cause__ from error
            raise
        return [None] * len(batch)

    def _acknowledged(self, packed: Packed, _: None = None) -> None:
        ended = packed.ended
        self._completions.add(ended.attempt, ended.outcome, ended.state)

    def _replace_ack(self, packed: Packed, error: Exception) -> Packed | None:
        ended = packed.ended
        if not ended.refused and not ended.attempt.job.is_recorded:
            return self._acknowledgements.pack(ended.as_refused("Redis", error), now_ms())
        log.error("lease_not_acknowledged", record=ended.attempt.lease.id, exc_info=error, hint="it ends by itself")
        self._acknowledged(packed)
        return None

    def _goes_on_acknowledging(self, packed: Packed) -> bool:
        goes_on = _is_trusted(packed.ended) and not packed.ended.attempt.job.is_recorded
        if not goes_on:
            self._acknowledged(packed)
        return goes_on


def _is_trusted(ended: Ended) -> bool:
    return ended.attempt.trusted_until > time.monotonic()
