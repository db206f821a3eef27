"""The chaos worker: the normal worker, with its gateways, clock or guards changed as the plan in CHAOS_PLAN says.

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
from tests.chaos.gateways import Act, Armed, Dice, Faults, Point, Rates, Watch, wrapped
from tests.chaos.history import FaultKind
from tests.chaos.journal import Journal, here

VARIABLE = "CHAOS_PLAN"
TICK_S = 0.05
LATE_S = 0.25
"""A loop that is so late is noted as a stall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is wrong with a worker.

    `rates`: until SIGUSR2. `clock_s`: how far SIGUSR1 sets its clock. `without`: keys of WITHOUT.
    """

    point: Point | None = None
    rates: Rates | None = None
    clock_s: float = 0.0
    without: tuple[str, ...] = ()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, dumped: str) -> Self:
        given = json.loads(dumped or "{}")
        point = given.get("point")
        rates = given.get("rates")
        return cls(
            point=Point(**point | {"act": Act(point["act"])}) if point else None,
            rates=Rates(**rates) if rates else None,
            clock_s=given.get("clock_s", 0.0),
            without=tuple(given.get("without", ())),
        )


def main() -> None:
    """Run one worker until it is stopped."""
    plan = Plan.load(os.environ.get(VARIABLE, ""))
    journal = here()
    faults: list[Faults] = [Watch(journal)]
    faults += [Armed(plan.point, journal)] if plan.point else []
    if plan.rates:
        dice = Dice(plan.rates, journal)
        faults.append(dice)
        signal.signal(signal.SIGUSR2, lambda _number, _frame: dice.heal())
    with ExitStack() as stack:
        for part in plan.without:
            stack.enter_context(WITHOUT[part]())
        if plan.clock_s:
            Clock(plan.clock_s).install()
        stack.enter_context(wrapped(faults, journal))
        watch = LoopWatch(journal)
        Worker(on_startup=watch.start, on_shutdown=watch.stop, allow_abort_jobs=True).run()


class LoopWatch:
    """Tells the journal that the worker runs, and when its loop was late."""

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
    """The wall clock of this process, which SIGUSR1 sets by `step_s`. Every module that took `time.time` or `datetime` along gets it."""

    step_s = 0.0

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def install(self) -> None:
        true_time, true_time_ns, true_datetime = time.time, time.time_ns, datetime
        replaced: dict[int, object] = {
            id(true_time): lambda: true_time() + Clock.step_s,
            id(true_time_ns): lambda: true_time_ns() + int(Clock.step_s * 1e9),
            id(true_datetime): SteppedDatetime,
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
    """`datetime` by the stepped clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(seconds=Clock.step_s)


@contextmanager
def without_fence() -> Generator[None]:
    """Outcomes are recorded whoever sends them: each gets the attempt and the token that the record has just then."""
    finish = Store.finish

    async def unguarded(
        self: Store, finishes: Sequence[Finish], session: AsyncSession | None = None
    ) -> dict[Fence, State]:
        current = await _fences(self, [one.id for one in finishes])
        stolen = [
            _changed(one, attempt=current[one.id][0], token=current[one.id][1]) if one.id in current else one
            for one in finishes
        ]
        answers = await finish(self, stolen, session)
        given = {(new.id, new.attempt): old.attempt for new, old in zip(stolen, finishes, strict=True)}
        return {(record, given[record, attempt]): state for (record, attempt), state in answers.items()}

    with _instead(Store, "finish", unguarded):
        yield


@contextmanager
def without_reconciler() -> Generator[None]:
    """Nobody reaps, nobody pushes what Redis lost."""

    async def nothing(self: Reconciler) -> None:
        return

    with _instead(Reconciler, "run", nothing):
        yield


@contextmanager
def without_renewal() -> Generator[None]:
    """LeaseKeeper are never extended, and the worker believes that they are."""

    async def store_renew(self: Store, renewals: Sequence[Renew], lease_s: float) -> dict[Fence, bool]:
        return {(renewal.id, renewal.attempt): False for renewal in renewals}

    async def queue_renew(self: Queue, leases: Sequence[object], lease_s: float) -> list[Renewal]:
        return [Renewal.RENEWED] * len(leases)

    with _instead(Store, "renew", store_renew), _instead(Queue, "renew", queue_renew):
        yield


@contextmanager
def without_claims_in_sleep() -> Generator[None]:
    """A queue sleeps first and claims then, as one does whose jobs want pages."""
    with _instead(Poller, "looks_first", property(lambda _: True)):
        yield


WITHOUT: dict[str, Callable[[], Any]] = {
    "fence": without_fence,
    "reconciler": without_reconciler,
    "renewal": without_renewal,
    "claims in sleep": without_claims_in_sleep,
}


@contextmanager
def _instead(kind: type[Any], name: str, verb: object) -> Generator[None]:
    true = vars(kind)[name]
    setattr(kind, name, verb)
    try:
        yield
    finally:
        setattr(kind, name, true)


def _changed(value: Any, **fields: object) -> Any:
    """A copy with other fields, of a dataclass or of a struct."""
    return msgspec.structs.replace(value, **fields) if isinstance(value, msgspec.Struct) else replace(value, **fields)


async def _fences(store: Store, records: Sequence[UUID]) -> dict[UUID, tuple[int, str]]:
    async with store.transaction() as session:
        connection = await session.connection()
        statement = text("SELECT id, attempt, lease_token FROM cplane.jobs WHERE id = ANY(CAST(:ids AS uuid[]))")
        rows = (await connection.execute(statement, {"ids": list(records)})).all()
    return {cast("UUID", row.id): (cast("int", row.attempt), cast("str", row.lease_token)) for row in rows}


if __name__ == "__main__":
    main()
