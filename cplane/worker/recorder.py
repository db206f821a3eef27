"""The recorder: takes outcomes from the runner, records them in Postgres, acknowledges them in Redis, publishes them, and completes them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from cplane.errors import DatabaseUnavailable, QueueUnavailable, SchemaMismatch
from cplane.jobs.states import AttemptState, State
from cplane.postgres.rows import Error
from cplane.postgres.store import Store
from cplane.redis.envelope import ErrorText, KeptResult, encode, now_ms
from cplane.redis.events import Events
from cplane.redis.keys import redis_name
from cplane.redis.messages import Ack, Disposition
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.worker.attempt import AnyFence, Attempt
from cplane.worker.completions import Completions
from cplane.worker.outcome import Outcome

INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0

log = structlog.get_logger("cplane")


class Ended(msgspec.Struct, frozen=True):
    """An attempt and its outcome; `state` is that of its record then."""

    attempt: Attempt
    outcome: Outcome
    state: State


Serializer = Callable[[dict[str, Any]], bytes]


class Recorder:
    """Records outcomes in two stages: one batch is in flight in Postgres while the one before is in flight in Redis.

    Args:
        store: Postgres.
        queue: Redis.
        events: tells the waiters.
        completions: takes attempts that are recorded everywhere.
        serialize: how results are kept in Redis, if arq's settings say so.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        events: Events,
        completions: Completions,
        serialize: Serializer | None = None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._completions = completions
        self._serialize = serialize
        self._outcomes: Batch[Ended, None] = Batch(self._record, name="record outcomes")
        self._acks: Batch[Ended, None] = Batch(self._acknowledge, name="acknowledge leases")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._acks)
        await self._open.enter_async_context(self._outcomes)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def post(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record an outcome with the next batch. What needs no record, or has it, goes straight to Redis."""
        stage = self._outcomes if attempt.job.is_recorded and not outcome.recorded else self._acks
        stage.post(Ended(attempt, outcome, outcome.state))

    def drop(self, attempt: Attempt) -> None:
        """End an attempt that has no outcome: its lease was lost."""
        self._completions.drop(attempt)

    async def _record(self, batch: Sequence[Ended]) -> list[None]:
        """The first stage: Postgres."""
        states = await self._finish(batch)
        for ended in batch:
            state = states.get(ended.attempt.fence)
            if state is None:
                self._completions.drop(ended.attempt)
            else:
                self._acks.post(ended if state is ended.state else msgspec.structs.replace(ended, state=state))
        return [None] * len(batch)

    async def _finish(self, batch: Sequence[Ended]) -> "dict[AnyFence, State]":
        """Record in Postgres. During an outage this is retried for as long as the leases can be trusted."""
        backoff_s = INITIAL_BACKOFF_S
        while batch:
            try:
                states = await self._store.finish([ended.attempt.finish(ended.outcome) for ended in batch])
                return {fence: state for fence, state in states.items()}  # noqa: C416  the keys are a wider type
            except (DatabaseUnavailable, SchemaMismatch) as error:
                log.warning("outcomes_not_recorded", count=len(batch), reason=str(error), retry_in_s=backoff_s)
            except Exception as error:
                return await self._finish_singly(batch, error)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            batch = _trusted(batch)
        return {}

    async def _finish_singly(self, batch: Sequence[Ended], error: Exception) -> "dict[AnyFence, State]":
        """One outcome that Postgres cannot store must not take the others along: it is recorded as a failure instead."""
        if len(batch) > 1:
            states: dict[AnyFence, State] = {}
            for ended in batch:
                states |= await self._finish([ended])
            return states
        (ended,) = batch
        if ended.outcome.attempt_state is AttemptState.FAILED and ended.outcome.result_json is None:
            log.error("outcome_not_storable", record=ended.attempt.lease.id, exc_info=error)
            return {}
        reason = Error("ResultNotSerializable", f"the outcome cannot be stored: {type(error).__name__}")
        failed = Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=reason, failures=1)
        return await self._finish([Ended(ended.attempt, failed, failed.state)])

    async def _acknowledge(self, batch: Sequence[Ended]) -> list[None]:
        """The second stage: Redis, then the waiters.

        During an outage of Redis the results of jobs without a record are retried for as long as the leases can be trusted. A record is
        final in any case: Redis hands its id out again when the lease has ended, and the record refuses to start.
        """
        pending, backoff_s, now = batch, INITIAL_BACKOFF_S, now_ms()
        while pending:
            try:
                await self._queue.ack([self._ack(ended, now) for ended in pending])
                await self._events.publish([(e.attempt.lease.id, e.state, e.attempt.number) for e in pending])
                break
            except QueueUnavailable as error:
                log.warning("outcomes_not_acknowledged", count=len(pending), reason=str(error), retry_in_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            pending = [ended for ended in _trusted(pending) if not ended.attempt.job.is_recorded]
        for ended in batch:
            self._completions.add(ended.attempt, ended.outcome, ended.state)
        return [None] * len(batch)

    def _ack(self, ended: Ended, now: int) -> Ack:
        """Return how the lease leaves Redis, with the result if Redis keeps it."""
        attempt, outcome = ended.attempt, ended.outcome
        if ended.state is State.QUEUED:
            if outcome.attempt_state is AttemptState.RELEASED and not outcome.delay_s:
                return Ack.release(attempt.lease)
            payload = attempt.job.next_payload(attempt.envelope, outcome)
            return Ack(attempt.lease, Disposition.RETRY, int(outcome.delay_s * 1000), payload)
        kept = attempt.job.retention(ended.state)
        if kept.result_ms is None:
            return Ack(attempt.lease, Disposition.DONE, keep_lease_ms=kept.lease_ms)
        result = self._encode(_kept_result(attempt, outcome, now))
        return Ack(attempt.lease, Disposition.DONE, kept.result_ms, result, kept.lease_ms)

    def _encode(self, result: KeptResult) -> bytes:
        try:
            return encode(result) if self._serialize is None else self._serialize(msgspec.structs.asdict(result))
        except Exception as error:
            log.warning("result_not_kept", record=result.id, job=result.f, reason=str(error))
            text = ErrorText("ResultNotSerializable", f"what '{result.f}' returned cannot be kept: {error}")
            failed = msgspec.structs.replace(result, s=False, r=text.packed(), a=(), k={})
            return encode(failed)


def _kept_result(attempt: Attempt, outcome: Outcome, now: int) -> KeptResult:
    envelope: Any = attempt.envelope
    succeeded = outcome.state is State.SUCCEEDED
    value = outcome.value
    if outcome.result_json is not None and outcome.result_json != b"null":
        value = msgspec.json.decode(outcome.result_json)
    if not succeeded:
        error = outcome.error or Error("CancelledError", "it was cancelled")
        value = ErrorText(error.type, error.message, error.traceback).packed()
    return KeptResult(
        t=attempt.number,
        f=envelope.f,
        a=envelope.a,
        k=envelope.k,
        et=envelope.et,
        s=succeeded,
        r=value,
        st=attempt.began_ms,
        ft=now,
        q=redis_name(attempt.lease.queue, attempt.lease.priority),
        id=attempt.lease.id,
    )


def _trusted(batch: Sequence[Ended]) -> list[Ended]:
    now = time.monotonic()
    return [ended for ended in batch if ended.attempt.trusted_until > now]
