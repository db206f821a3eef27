"""Faults at the gateways of a worker: a crash point before and after every verb of Store, Queue and Events.

The verbs are found by inspection. The product has no hook for this: the verbs are wrapped on their classes, in the
worker's process, before the worker is created.
"""

import asyncio
import inspect
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import Any, Protocol, cast

from sqlmodel.ext.asyncio.session import AsyncSession

from cplane.errors import DatabaseUnavailable, QueueUnavailable
from cplane.postgres.store import Store
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.events import Events
from cplane.redis.messages import Claim
from cplane.redis.queue import Queue
from tests.chaos.history import FaultKind
from tests.chaos.journal import Journal

GATEWAYS: dict[str, type[Any]] = {
    "store": Store,
    "queue": Queue,
    "dead_letters": DeadLetterStream,
    "events": Events,
}

CLIENT = frozenset(
    {
        *(
            "store.submit",
            "store.flush",
            "store.get",
            "store.get_many",
            "store.find",
            "store.attempts",
            "store.cancel",
            "store.replay",
            "store.replay_many",
        ),
        *("store.artifact", "store.artifacts", "store.artifact_names", "store.add_artifact"),
        *(
            "queue.ping",
            "queue.results",
            "queue.presence",
            "queue.abort",
            "queue.now_ms",
            "dead_letters.newest",
            "queue.depth",
        ),
    }
)
"""Verbs that a worker does not call, or only for jobs with files. A crash there is a crash of the client."""

SLOW_CALL_S = 0.25
"""A longer call is logged as a stall: a busy machine loses leases of one second without any fault."""

WAITING_VERBS = frozenset({"queue.sleep", "events.read"})
"""Verbs whose purpose is to wait."""


class Action(StrEnum):
    """What happens at a crash point."""

    EXIT = "exit"
    FAIL = "fail"
    """Before the call: not done, and an error. After it: done, but reported as an error."""
    DELAY = "delay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A crash point. `verb` is for example store.finish, `place` is before or after."""

    verb: str
    place: str
    act: Action
    delay_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.verb}:{self.place}:{self.act}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The share of calls, 0 to 1, that fail undone (`error`), fail although done (`late_error`), or are delayed."""

    seed: int
    error: float = 0.0
    late_error: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.3


class Faults(Protocol):
    """Code that runs before and after each call."""

    async def before(self, verb: str, argument: object) -> None: ...

    async def after(self, verb: str, result: object, *, joined: bool) -> None:
        """`joined`: the call was part of the caller's transaction, which may still be rolled back."""
        ...


class SingleFault:
    """One fault at one crash point, at the first call that has work to do."""

    def __init__(self, point: Point, journal: Journal) -> None:
        self._point = point
        self._journal = journal
        self._armed = True

    async def before(self, verb: str, argument: object) -> None:
        await self._trigger(verb, "before", _has_content(argument))

    async def after(self, verb: str, result: object, *, joined: bool) -> None:
        await self._trigger(verb, "after", _has_content(result))

    async def _trigger(self, verb: str, place: str, content: bool) -> None:
        point = self._point
        if not self._armed or (verb, place) != (point.verb, point.place) or not content:
            return
        self._armed = False
        self._journal.write("reached", point=str(point))
        now = time.monotonic()
        if point.act is Action.EXIT:
            self._journal.write("fault", kind=FaultKind.CRASH, began=now, ended=now, note=str(point))
            os._exit(70)
        self._journal.write("fault", kind=FaultKind.CALL, began=now, ended=now + point.delay_s, note=str(point))
        if point.act is Action.DELAY:
            await asyncio.sleep(point.delay_s)
        else:
            raise _unavailable(verb)


class RandomFaults:
    """Random faults until `heal`, in the same order for the same seed."""

    def __init__(self, rates: Rates, journal: Journal) -> None:
        self._rates = rates
        self._journal = journal
        self._random = random.Random(rates.seed)

    def heal(self) -> None:
        """Stop the faults."""
        self._rates = Rates(seed=self._rates.seed)

    async def before(self, verb: str, argument: object) -> None:
        if self._random.random() < self._rates.delay:
            self._log(verb, "delay", self._rates.delay_s)
            await asyncio.sleep(self._rates.delay_s)
        if self._random.random() < self._rates.error:
            self._log(verb, "error")
            raise _unavailable(verb)

    async def after(self, verb: str, result: object, *, joined: bool) -> None:
        if self._random.random() < self._rates.late_error:
            self._log(verb, "done, but reported as an error")
            raise _unavailable(verb)

    def _log(self, verb: str, problem: str, took_s: float = 0.0) -> None:
        now = time.monotonic()
        self._journal.write("fault", kind=FaultKind.CALL, began=now, ended=now + took_s, note=f"{verb}: {problem}")


class OutcomeLog:
    """Injects no fault: logs the outcomes that the store accepted."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def before(self, verb: str, argument: object) -> None:
        return

    async def after(self, verb: str, result: object, *, joined: bool) -> None:
        if verb == "store.finish" and not joined:
            for (record, attempt), state in cast("dict[tuple[object, int], str]", result).items():
                self._journal.write("accepted", record=record, attempt=attempt, state=str(state))


def verbs() -> dict[str, Callable[..., Any]]:
    """Return all verbs that a worker can call, by name. Verbs that are added to a gateway later are found too."""
    found = {
        f"{gateway}.{name}": verb
        for gateway, kind in GATEWAYS.items()
        for name, verb in vars(kind).items()
        if not name.startswith("_") and (inspect.iscoroutinefunction(verb) or _opens_block(verb))
    }
    return {name: verb for name, verb in found.items() if name not in CLIENT}


@contextmanager
def wrapped(
    faults: Sequence[Faults], journal: Journal | None = None, names: frozenset[str] | None = None
) -> Generator[None]:
    """Wrap verbs of the gateways with faults until the block ends: all that a worker calls, or only `names`."""
    chosen = verbs() if names is None else {name: _verb(name) for name in names}
    for name, verb in chosen.items():
        gateway, _, attribute = name.partition(".")
        wrap = _wrap_block if _opens_block(verb) else _wrap_call
        setattr(GATEWAYS[gateway], attribute, wrap(name, verb, faults, journal))
    try:
        yield
    finally:
        for name, verb in chosen.items():
            gateway, _, attribute = name.partition(".")
            setattr(GATEWAYS[gateway], attribute, verb)


def _verb(name: str) -> Callable[..., Any]:
    gateway, _, attribute = name.partition(".")
    return cast("Callable[..., Any]", vars(GATEWAYS[gateway])[attribute])


def _wrap_call(
    name: str, verb: Callable[..., Any], faults: Sequence[Faults], journal: Journal | None
) -> Callable[..., Any]:
    @wraps(verb)
    async def call(self: object, *args: Any, **kwargs: Any) -> Any:
        argument = args[0] if args else True
        began = time.monotonic()
        for fault in faults:
            await fault.before(name, argument)
        result = await verb(self, *args, **kwargs)
        joined = any(isinstance(value, AsyncSession) for value in (*args, *kwargs.values()))
        for fault in faults:
            await fault.after(name, result, joined=joined)
        slow_s = SLOW_CALL_S + (args[1] if name == "queue.sleep_and_claim" else 0.0)
        if journal is not None and name not in WAITING_VERBS and time.monotonic() - began > slow_s:
            journal.write("fault", kind=FaultKind.STALL, began=began, ended=time.monotonic(), note=f"{name} took long")
        return result

    return call


def _wrap_block(
    name: str, verb: Callable[..., Any], faults: Sequence[Faults], journal: Journal | None
) -> Callable[..., Any]:
    @wraps(verb)
    @asynccontextmanager
    async def block(self: object, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        for fault in faults:
            await fault.before(name, True)
        async with verb(self, *args, **kwargs) as opened:
            yield opened
        for fault in faults:
            await fault.after(name, True, joined=False)

    return block


def _opens_block(verb: object) -> bool:
    return inspect.isasyncgenfunction(getattr(verb, "__wrapped__", None))


def _has_content(value: object) -> bool:
    """Return whether an argument or a result contains anything that can be lost.

    A verb without a result always counts.
    """
    if isinstance(value, Claim):
        return bool(value.leases)
    if isinstance(value, tuple):
        value = next(iter(cast("tuple[object, ...]", value)), None)  # events and the position after them
    if isinstance(value, list | dict):
        return bool(cast("list[object]", value))
    return True


def _unavailable(verb: str) -> Exception:
    error = DatabaseUnavailable if verb.startswith("store.") else QueueUnavailable
    return error(f"chaos: {verb} did not respond")
