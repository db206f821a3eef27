"""A process that submits: it takes orders as lines of JSON on stdin, carries them out through one system's own client, and answers in JSON.

It is the same program for every system: `serve(client)` or `serve_sync(client)`, run in the environment of the peer. It needs the standard library
alone, and takes uvloop where the peer's environment has it. The time that an answer carries is that of submitting alone.
"""

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, Protocol

from benchmarks.kit.slots import Slots, open_slots

Order = dict[str, Any]
TICK_S = 0.002


class Client(Protocol):
    """What a peer's client.py implements with the peer's own API. `job` is noop or sleep; the slot is the job's argument."""

    async def open(self) -> None:
        """Connect."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...

    async def submit(self, job: str, slot: int) -> None:
        """Submit one job, and wait until the system has it."""
        ...

    async def submit_bulk(self, job: str, slots: range) -> None:
        """Submit many jobs by the fastest stock way."""
        ...


class SyncClient(Protocol):
    """The same for systems whose client is not asynchronous; it is called from several threads."""

    def submit(self, job: str, slot: int) -> None:
        """Submit one job, and wait until the system has it."""
        ...

    def submit_bulk(self, job: str, slots: range) -> None:
        """Submit many jobs by the fastest stock way."""
        ...


def serve(make: Callable[[], Client]) -> None:
    """Serve orders with an asynchronous client until stdin ends."""
    _run(_serve(make))


def serve_sync(make: Callable[[], SyncClient]) -> None:
    """Serve orders with a synchronous client until stdin ends."""
    client = make()
    slots = open_slots()
    _say({"ready": True})
    for line in sys.stdin:
        order: Order = json.loads(line)
        began = time.perf_counter()
        SYNC[order["do"]](client, slots, order)
        _say({"took_s": time.perf_counter() - began})


def unavailable(reason: str) -> NoReturn:
    """Say why this system cannot take part, and leave."""
    _say({"unavailable": reason})
    sys.exit(0)


async def _serve(make: Callable[[], Client]) -> None:
    client = make()
    await client.open()
    slots = open_slots()
    _say({"ready": True})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order: Order = json.loads(line)
        began = time.perf_counter()
        await ASYNC[order["do"]](client, slots, order)
        _say({"took_s": time.perf_counter() - began})
    await client.close()


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415  not in every environment
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


def _say(answer: Order) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _range(order: Order) -> range:
    return range(order["first"], order["first"] + order["count"])


# asynchronous orders


async def bulk(client: Client, _: Slots, order: Order) -> None:
    """All at once."""
    await client.submit_bulk(order["job"], _range(order))


async def single(client: Client, _: Slots, order: Order) -> None:
    """One awaited submit after another."""
    for slot in _range(order):
        await client.submit(order["job"], slot)


async def concurrent(client: Client, _: Slots, order: Order) -> None:
    """So many submitters side by side, each of which submits one after another."""
    waiting = iter(_range(order))

    async def submitter() -> None:
        for slot in waiting:
            await client.submit(order["job"], slot)

    await asyncio.gather(*(submitter() for _ in range(order["submitters"])))


async def sparse(client: Client, slots: Slots, order: Order) -> None:
    """One at a time, with a random pause before each, the last job long begun."""
    for slot in _range(order):
        await asyncio.sleep(_pause_s(order))
        slots.submit(slot)
        await client.submit(order["job"], slot)
        while not slots.has_run(slot):  # what comes next shall find an idle worker
            await asyncio.sleep(0.005)


async def steady(client: Client, slots: Slots, order: Order) -> None:
    """At a steady rate, each submit on its own: what is due goes out, however many others are under way."""

    async def submit(slot: int) -> None:
        slots.submit(slot)
        await client.submit(order["job"], slot)

    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        for slot in _range(order):
            due = began + (slot - order["first"]) / order["rate"]
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(max(wait_s, TICK_S))
            group.create_task(submit(slot))


ASYNC: dict[str, Callable[[Client, Slots, Order], Coroutine[Any, Any, None]]] = {
    "bulk": bulk,
    "single": single,
    "concurrent": concurrent,
    "sparse": sparse,
    "steady": steady,
}


# the same in threads


def sync_bulk(client: SyncClient, _: Slots, order: Order) -> None:
    """All at once."""
    client.submit_bulk(order["job"], _range(order))


def sync_single(client: SyncClient, _: Slots, order: Order) -> None:
    """One submit after another."""
    for slot in _range(order):
        client.submit(order["job"], slot)


def sync_concurrent(client: SyncClient, _: Slots, order: Order) -> None:
    """As many threads as submitters."""
    with ThreadPoolExecutor(order["submitters"]) as threads:
        for _done in threads.map(partial(client.submit, order["job"]), _range(order)):
            pass


def sync_sparse(client: SyncClient, slots: Slots, order: Order) -> None:
    """One at a time, with a random pause before each, the last job long begun."""
    for slot in _range(order):
        time.sleep(_pause_s(order))
        slots.submit(slot)
        client.submit(order["job"], slot)
        while not slots.has_run(slot):
            time.sleep(0.005)


def sync_steady(client: SyncClient, slots: Slots, order: Order) -> None:
    """At a steady rate, from four threads."""
    waiting = iter(_range(order))
    turn = threading.Lock()
    began = time.monotonic()

    def submitter() -> None:
        while True:
            with turn:
                slot = next(waiting, None)
            if slot is None:
                return
            if (wait_s := began + (slot - order["first"]) / order["rate"] - time.monotonic()) > 0:
                time.sleep(wait_s)
            slots.submit(slot)
            client.submit(order["job"], slot)

    threads = [threading.Thread(target=submitter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SYNC: dict[str, Callable[[SyncClient, Slots, Order], None]] = {
    "bulk": sync_bulk,
    "single": sync_single,
    "concurrent": sync_concurrent,
    "sparse": sync_sparse,
    "steady": sync_steady,
}


def _pause_s(order: Order) -> float:
    return random.uniform(order["pause_s"] * 0.5, order["pause_s"] * 1.5)  # noqa: S311  no secret
