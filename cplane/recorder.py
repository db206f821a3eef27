"""Recording what came of attempts: first Postgres, then Redis, then everybody else. What gathers is recorded together."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import structlog

from cplane.attempt import Attempt, Outcome
from cplane.batch import Batch
from cplane.errors import DatabaseUnavailable, QueueUnavailable, SchemaMismatch
from cplane.events import Event, Events
from cplane.queue import Queue
from cplane.states import AttemptState, State
from cplane.store import Error, Fence, Store

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt and its outcome; `recorded` says that its own transaction has told Postgres already."""

    attempt: Attempt
    outcome: Outcome
    recorded: bool = False


class Recorder:
    """Takes outcomes and answers where each record is then, or None for an attempt that no longer owned its record."""

    def __init__(self, store: Store, queue: Queue, events: Events) -> None:
        self._store = store
        self._queue = queue
        self._events = events
        self._batch = Batch(self._record, name="record outcomes")

    async def __aenter__(self) -> Self:
        await self._batch.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._batch.__aexit__(exc_type, exc, tb)

    async def record(self, ended: Ended) -> State | None:
        """Record one outcome, together with those that gathered meanwhile."""
        return await self._batch(ended)

    async def _record(self, group: Sequence[Ended]) -> list[State | None]:
        states = {ended.attempt.fence: ended.outcome.state for ended in group if ended.recorded}
        states |= await self._finish([ended for ended in group if not ended.recorded])
        owned = [(ended, states[ended.attempt.fence]) for ended in group if ended.attempt.fence in states]
        try:
            await self._queue.finish([ended.attempt.give_back(state, ended.outcome) for ended, state in owned])
            await self._events.publish([_event(ended, state) for ended, state in owned])
        except QueueUnavailable as error:
            # the record stands: Redis hands the id out again when the lease has ended, and the record refuses it
            log.warning("outcomes are recorded, but Redis could not be told", count=len(owned), reason=str(error))
        return [states.get(ended.attempt.fence) for ended in group]

    async def _finish(self, group: Sequence[Ended]) -> dict[Fence, State]:
        """Tell Postgres; while it is away, try again for as long as the leases can be trusted."""
        pause_s = FIRST_PAUSE_S
        while group:
            try:
                return await self._store.finish([ended.attempt.finish(ended.outcome) for ended in group])
            except (DatabaseUnavailable, SchemaMismatch) as error:
                log.warning("outcomes cannot be recorded yet", count=len(group), reason=str(error))
            except Exception as error:
                return await self._finish_singly(group, error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            group = [ended for ended in group if ended.attempt.trusted_until > time.monotonic()]
        return {}

    async def _finish_singly(self, group: Sequence[Ended], error: Exception) -> dict[Fence, State]:
        """One outcome that Postgres cannot store must not take the others along: it is recorded as a failure instead."""
        if len(group) > 1:
            states: dict[Fence, State] = {}
            for ended in group:
                states |= await self._finish([ended])
            return states
        (ended,) = group
        if ended.outcome.attempt_state is AttemptState.FAILED and ended.outcome.result_json is None:
            log.error("an outcome cannot be stored", record=str(ended.attempt.started.id), exc_info=error)
            return {}
        reason = Error("ResultNotSerializable", f"the outcome cannot be stored: {type(error).__name__}")
        failed = Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=reason, failures=1)
        return await self._finish([replace(ended, outcome=failed)])


def _event(ended: Ended, state: State) -> Event:
    return Event(ended.attempt.started.id, state, ended.attempt.started.attempt)
