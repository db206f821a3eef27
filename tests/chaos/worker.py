"""The chaos worker: the normal worker with faults in its gateways, clock or guards, as the plan in CHAOS_PLAN says.

CHAOS_JOURNAL=run.jsonl CHAOS_PLAN='{"without": ["reconciler"]}' python -m tests.chaos.worker
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self, cast
from uuid import UUID

import msgspec
from sqlmodel import text
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.jobs.states import State
from cplane.postgres.rows import Fence, Finish, Renew
from cplane.postgres.store import Store
from cplane.redis.messages import Renewal
from cplane.redis.queue import Queue
from cplane.worker import Worker
from cplane.worker.poller import Poller
from cplane.worker.reconciler import Reconciler
from tests.chaos.gateways import Action, Faults, OutcomeLog, Point, RandomFaults, Rates, SingleFault, wrapped
from tests.chaos.history import FaultKind
from tests.chaos.journal import Journal, here

VARIABLE = "CHAOS_PLAN"
TICK_S = 0.05
LATE_S = 0.25
"""An event loop that is later than this is logged as a stall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The faults of a worker.

    Attributes:
        point: one crash point.
        rates: random faults until SIGUSR2.
        clock_s: how far SIGUSR1 sets the clock, seconds.
        without: guards that are switched off, keys of WITHOUT.
    """

    point: Point | None = None
    rates: Rates | None = None
    clock_s: float = 0.0
    without: tuple[str, ...] = ()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, dumped: str) -> Self:
        fields = json.loads(dumped or "{}")
        point = fields.get("point")
        rates = fields.get("rates")
        return cls(
            point=Point(**point | {"act": Action(point["act"])}) if point else None,
            rates=Rates(**rates) if rates else None,
            clock_s=fields.get("clock_s", 0.0),
            without=tuple(fields.get("without", ())),
        )


def main() -> None:
    """Run one worker until it is stopped."""
    plan = Plan.load(os.environ.get(VARIABLE, ""))
    journal = here()
    faults: list[Faults] = [OutcomeLog(journal)]
    faults += [SingleFault(plan.point, journal)] if plan.point else []
    if plan.rates:
        random_faults = RandomFaults(plan.rates, journal)
        faults.append(random_faults)
        signal.signal(signal.SIGUSR2, lambda _number, _frame: random_faults.heal())
    with ExitStack() as stack:
        for part in plan.without:
            stack.enter_context(WITHOUT[part]())
        if plan.clock_s:
            Clock(plan.clock_s).install()
        stack.enter_context(wrapped(faults, journal))
        watchdog = LoopWatch(journal)
        Worker(on_startup=watchdog.start, on_shutdown=watchdog.stop, allow_abort_jobs=True).run()


class LoopWatch:
    """Logs the start of the worker, and when its event loop was late."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._task: asyncio.Task[None] | None = None

    async def start(self, _: dict[Any, Any]) -> None:
        self._task = asyncio.create_task(self._watch(), name="watch the loop")
        self._journal.write("started")

    async def stop(self, _: dict[Any, Any]) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            ended = time.monotonic()
            if ended - began > TICK_S + LATE_S:
                self._journal.write("fault", kind=FaultKind.STALL, began=began, ended=ended, note="the loop was late")


class Clock:
    """The wall clock of this process, which SIGUSR1 sets by `step_s`.

    It replaces `time.time` and `datetime` in every module.
    """

    step_s = 0.0

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def install(self) -> None:
        real_time, real_time_ns, real_datetime = time.time, time.time_ns, datetime
        replaced: dict[int, object] = {
            id(real_time): lambda: real_time() + Clock.step_s,
            id(real_time_ns): lambda: real_time_ns() + int(Clock.step_s * 1e9),
            id(real_datetime): SteppedDatetime,
        }
        for name, module in list(sys.modules.items()):
            if name == "time" or name.partition(".")[0] in {"cplane", "arq", "redis", "structlog", "asyncpg"}:
                for attribute, value in list(vars(module).items()):
                    if id(value) in replaced:
                        setattr(module, attribute, replaced[id(value)])
        signal.signal(signal.SIGUSR1, self._set)

    def _set(self, *_: object) -> None:
        Clock.step_s = self._step_s
        here().write("stepped", wall=time.time())


class SteppedDatetime(datetime):
    """`datetime` with the stepped clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(seconds=Clock.step_s)


@contextmanager
def without_fence() -> Generator[None]:
    """Record outcomes of any sender: each gets the current attempt and token of its record."""
    finish = Store.finish

    async def unguarded(
        self: Store, finishes: Sequence[Finish], session: AsyncSession | None = None
    ) -> dict[Fence, State]:
        current = await _fences(self, [one.id for one in finishes])
        forged = [
            _changed(one, attempt=current[one.id][0], token=current[one.id][1]) if one.id in current else one
            for one in finishes
        ]
        states = await finish(self, forged, session)
        original = {(new.id, new.attempt): old.attempt for new, old in zip(forged, finishes, strict=True)}
        return {(record, original[record, attempt]): state for (record, attempt), state in states.items()}

    with _replaced(Store, "finish", unguarded):
        yield


@contextmanager
def without_reconciler() -> Generator[None]:
    """Dead leases are not reaped, and jobs that Redis lost are not scheduled again."""

    async def nothing(self: Reconciler) -> None:
        return

    with _replaced(Reconciler, "run", nothing):
        yield


@contextmanager
def without_renewal() -> Generator[None]:
    """Leases are never renewed, but the worker believes that they are."""

    async def store_renew(self: Store, renewals: Sequence[Renew], lease_s: float) -> dict[Fence, bool]:
        return {(renewal.id, renewal.attempt): False for renewal in renewals}

    async def queue_renew(self: Queue, leases: Sequence[object], lease_s: float) -> list[Renewal]:
        return [Renewal.RENEWED] * len(leases)

    with _replaced(Store, "renew", store_renew), _replaced(Queue, "renew", queue_renew):
        yield


@contextmanager
def without_blocking_claim() -> Generator[None]:
    """A poller sleeps first and claims afterwards, like one whose jobs need pages."""
    with _replaced(Poller, "looks_first", property(lambda _: True)):
        yield


WITHOUT: dict[str, Callable[[], Any]] = {
    "fence": without_fence,
    "reconciler": without_reconciler,
    "renewal": without_renewal,
    "claims in sleep": without_blocking_claim,
}


@contextmanager
def _replaced(kind: type[Any], name: str, verb: object) -> Generator[None]:
    original = vars(kind)[name]
    setattr(kind, name, verb)
    try:
        yield
    finally:
        setattr(kind, name, original)


def _changed(value: Any, **fields: object) -> Any:
    """Return a copy of a dataclass or a struct with other field values."""
    return msgspec.structs.replace(value, **fields) if isinstance(value, msgspec.Struct) else replace(value, **fields)


async def _fences(store: Store, records: Sequence[UUID]) -> dict[UUID, tuple[int, str]]:
    async with store.transaction() as session:
        connection = await session.connection()
        statement = text("SELECT id, attempt, lease_token FROM cplane.jobs WHERE id = ANY(CAST(:ids AS uuid[]))")
        rows = (await connection.execute(statement, {"ids": list(records)})).all()
    return {cast("UUID", row.id): (cast("int", row.attempt), cast("str", row.lease_token)) for row in rows}


if __name__ == "__main__":
    main()
