"""Recording what came of attempts: first Postgres, then Redis, then everybody else. What gathers is recorded together."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from cplane.errors import DatabaseUnavailable, QueueUnavailable, SchemaMismatch
from cplane.jobs.options import Options
from cplane.jobs.states import AttemptState, State
from cplane.postgres.rows import Error
from cplane.postgres.store import Store
from cplane.redis.envelope import ErrorText, KeptResult, encode, encode_envelope, now_ms
from cplane.redis.events import Events
from cplane.redis.keys import redis_name
from cplane.redis.messages import Ack, Disposition
from cplane.redis.queue import Queue
from cplane.runtime.batch import Batch
from cplane.worker.arq_functions import PlainFunction
from cplane.worker.attempt import AnyFence, Attempt, finish_of
from cplane.worker.outcome import Outcome

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

log = structlog.get_logger("cplane")


class Ended(msgspec.Struct, frozen=True):
    """An attempt and its outcome; `state` is where its record is then."""

    attempt: Attempt
    outcome: Outcome
    state: State


Serializer = Callable[[dict[str, Any]], bytes]
Done = Callable[[Attempt, Outcome, State | None], None]
"""Told when everything is recorded; None: the attempt no longer owned its record."""


class Recorder:
    """Takes outcomes in two stages: Postgres is told of a group while Redis is told of the one before."""

    def __init__(
        self, store: Store, queue: Queue, events: Events, done: Done, serialize: Serializer | None = None
    ) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._done = done
        self._serialize = serialize
        self._outcomes: Batch[Ended, None] = Batch(self._record, name="record outcomes")
        self._returns: Batch[Ended, None] = Batch(self._give_back, name="give leases back")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._returns)
        await self._open.enter_async_context(self._outcomes)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def post(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record an outcome, together with those that gather; `done` is told when that has happened."""
        stage = self._returns if attempt.record_id is None or outcome.recorded else self._outcomes
        stage.post(Ended(attempt, outcome, outcome.state))

    async def _record(self, group: Sequence[Ended]) -> list[None]:
        """The first stage: Postgres."""
        states = await self._finish(group)
        for ended in group:
            state = states.get(ended.attempt.fence)
            if state is None:
                self._done(ended.attempt, ended.outcome, None)
            else:
                self._returns.post(ended if state is ended.state else msgspec.structs.replace(ended, state=state))
        return [None] * len(group)

    async def _finish(self, group: Sequence[Ended]) -> "dict[AnyFence, State]":
        """Tell Postgres; while it is away, try again for as long as the leases can be trusted."""
        pause_s = FIRST_PAUSE_S
        while group:
            try:
                states = await self._store.finish([finish_of(ended.attempt, ended.outcome) for ended in group])
                return {fence: state for fence, state in states.items()}  # noqa: C416  the keys are a wider type
            except (DatabaseUnavailable, SchemaMismatch) as error:
                log.warning("outcomes cannot be recorded yet", count=len(group), reason=str(error))
            except Exception as error:
                return await self._finish_singly(group, error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            group = _trusted(group)
        return {}

    async def _finish_singly(self, group: Sequence[Ended], error: Exception) -> "dict[AnyFence, State]":
        """One outcome that Postgres cannot store must not take the others along: it is recorded as a failure instead."""
        if len(group) > 1:
            states: dict[AnyFence, State] = {}
            for ended in group:
                states |= await self._finish([ended])
            return states
        (ended,) = group
        if ended.outcome.attempt_state is AttemptState.FAILED and ended.outcome.result_json is None:
            log.error("an outcome cannot be stored", record=ended.attempt.lease.id, exc_info=error)
            return {}
        reason = Error("ResultNotSerializable", f"the outcome cannot be stored: {type(error).__name__}")
        failed = Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=reason, failures=1)
        return await self._finish([Ended(ended.attempt, failed, failed.state)])

    async def _give_back(self, group: Sequence[Ended]) -> list[None]:
        """The second stage: Redis, and whoever listens.

        While Redis is away the results of transient jobs are kept for as long as the leases can be trusted. A record stands all the
        same: Redis hands its id out again when the lease has ended, and the record refuses it.
        """
        told, pause_s, now = group, FIRST_PAUSE_S, now_ms()
        while told:
            try:
                await self._queue.ack([self._return(ended, now) for ended in told])
                await self._events.publish([(e.attempt.lease.id, e.state, e.attempt.number) for e in told])
                break
            except QueueUnavailable as error:
                log.warning("Redis could not be told of outcomes", count=len(told), reason=str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            told = [ended for ended in _trusted(told) if ended.attempt.record_id is None]
        for ended in group:
            self._done(ended.attempt, ended.outcome, ended.state)
        return [None] * len(group)

    def _return(self, ended: Ended, now: int) -> Ack:
        """How the lease leaves Redis."""
        attempt, outcome = ended.attempt, ended.outcome
        if ended.state is not State.QUEUED:
            kept = attempt.record_id is None
            return self._kept(ended, now) if kept else Ack(attempt.lease, Disposition.DONE)
        if outcome.attempt_state is AttemptState.RELEASED and not outcome.delay_s:
            return Ack.release(attempt.lease)
        return Ack(attempt.lease, Disposition.RETRY, int(outcome.delay_s * 1000), _next_payload(attempt, outcome))

    def _kept(self, ended: Ended, now: int) -> Ack:
        """The end of a transient job: its result stays in Redis for as long as the job says."""
        attempt, outcome = ended.attempt, ended.outcome
        job = attempt.job
        keep_lease_ms = job.keep_lease_ms if isinstance(job, PlainFunction) else 0
        keep_ms = job.keep_result_ms if isinstance(job, PlainFunction) else _keep_ms(job.options, ended.state)
        if keep_ms is None:
            return Ack(attempt.lease, Disposition.DONE, keep_ms=keep_lease_ms)
        result = self._encode(_kept_result(attempt, outcome, now))
        return Ack(attempt.lease, Disposition.DONE, keep_ms, result, keep_lease_ms)

    def _encode(self, result: KeptResult) -> bytes:
        try:
            return encode(result) if self._serialize is None else self._serialize(msgspec.structs.asdict(result))
        except Exception as error:
            log.warning("a result cannot be kept", record=result.id, job=result.f, reason=str(error))
            text = ErrorText("ResultNotSerializable", f"what '{result.f}' returned cannot be kept: {error}")
            failed = msgspec.structs.replace(result, s=False, r=text.packed(), a=(), k={})
            return encode(failed)


def _keep_ms(options: Options, state: State) -> int | None:
    """How long what a transient job came to is kept; None: not at all."""
    keep_s = options.result_ttl_s if state is State.SUCCEEDED else options.error_ttl_s
    return int(keep_s * 1000) or None


def _next_payload(attempt: Attempt, outcome: Outcome) -> bytes:
    """What a transient job has spent of its budgets travels with it; a record knows it better, and arq counts tries alone."""
    envelope = attempt.args
    if isinstance(envelope, bytes) or isinstance(attempt.job, PlainFunction):
        return b""
    return encode_envelope(
        envelope.f,
        envelope.a,
        envelope.k,
        failures=envelope.failures + outcome.failures,
        interruptions=envelope.interruptions + outcome.interruptions,
        queue=envelope.queue,
        priority=envelope.priority,
        limit_keys=envelope.limit_keys,
    )


def _kept_result(attempt: Attempt, outcome: Outcome, now: int) -> KeptResult:
    envelope: Any = attempt.args
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


def _trusted(group: Sequence[Ended]) -> list[Ended]:
    now = time.monotonic()
    return [ended for ended in group if ended.attempt.trusted_until > now]
