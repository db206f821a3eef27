"""The producer process: reads orders as JSON lines from stdin, submits jobs with one system's client, replies in JSON.

It is the same program for every system: `serve(client)` or `serve_sync(client)`, run in the environment of the peer. It
needs only the standard library, and uses uvloop if the peer's environment has it. The time in a reply is that of the
submissions only.
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
    """Implemented by a peer's client.py with the API of the peer.

    `job` is noop or sleep; the slot is the argument of the job.
    """

    async def open(self) -> None:
        """Connect."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...

    async def submit(self, job: str, slot: int) -> None:
        """Submit one job, and wait until the system has accepted it."""
        ...

    async def submit_bulk(self, job: str, slots: range) -> None:
        """Submit many jobs by the fastest method that the system offers."""
        ...


class SyncClient(Protocol):
    """The same for systems with a synchronous client. It is called from several threads."""

    def submit(self, job: str, slot: int) -> None:
        """Submit one job, and wait until the system has accepted it."""
        ...

    def submit_bulk(self, job: str, slots: range) -> None:
        """Submit many jobs by the fastest method that the system offers."""
        ...


def serve(make: Callable[[], Client]) -> None:
    """Serve orders with an asynchronous client until stdin ends."""
    _run(_serve(make))


def serve_sync(make: Callable[[], SyncClient]) -> None:
    """Serve orders with a synchronous client until stdin ends."""
    client = make()
    slots = open_slots()
    _reply({"ready": True})
    for line in sys.stdin:
        order: Order = json.loads(line)
        began = time.perf_counter()
        SYNC[order["do"]](client, slots, order)
        _reply({"took_s": time.perf_counter() - began})


def unavailable(reason: str) -> NoReturn:
    """Report why this system cannot take part, and exit."""
    _reply({"unavailable": reason})
    sys.exit(0)


async def _serve(make: Callable[[], Client]) -> None:
    client = make()
    await client.open()
    slots = open_slots()
    _reply({"ready": True})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order: Order = json.loads(line)
        began = time.perf_counter()
        await ASYNC[order["do"]](client, slots, order)
        _reply({"took_s": time.perf_counter() - began})
    await client.close()


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415  not in every environment
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


def _reply(reply: Order) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _range(order: Order) -> range:
    return range(order["first"], order["first"] + order["count"])


# asynchronous orders


async def bulk(client: Client, _: Slots, order: Order) -> None:
    """Submit all jobs with the bulk call."""
    await client.submit_bulk(order["job"], _range(order))


async def single(client: Client, _: Slots, order: Order) -> None:
    """Submit and await one job after another."""
    for slot in _range(order):
        await client.submit(order["job"], slot)


async def concurrent(client: Client, _: Slots, order: Order) -> None:
    """Run concurrent submitters, each of which submits one job after another."""
    pending = iter(_range(order))

    async def submitter() -> None:
        for slot in pending:
            await client.submit(order["job"], slot)

    await asyncio.gather(*(submitter() for _ in range(order["submitters"])))


async def sparse(client: Client, slots: Slots, order: Order) -> None:
    """Submit one job at a time, after a random pause and the start of the previous job."""
    for slot in _range(order):
        await asyncio.sleep(_pause_s(order))
        slots.submit(slot)
        await client.submit(order["job"], slot)
        while not slots.has_run(slot):  # the next job must find an idle worker
            await asyncio.sleep(0.005)


async def steady(client: Client, slots: Slots, order: Order) -> None:
    """Submit at a constant rate: each job is sent when it is due, however many others are in flight."""

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


# synchronous orders, in threads


def sync_bulk(client: SyncClient, _: Slots, order: Order) -> None:
    """Submit all jobs with the bulk call."""
    client.submit_bulk(order["job"], _range(order))


def sync_single(client: SyncClient, _: Slots, order: Order) -> None:
    """Submit one job after another."""
    for slot in _range(order):
        client.submit(order["job"], slot)


def sync_concurrent(client: SyncClient, _: Slots, order: Order) -> None:
    """Submit from as many threads as there are submitters."""
    with ThreadPoolExecutor(order["submitters"]) as threads:
        for _done in threads.map(partial(client.submit, order["job"]), _range(order)):
            pass


def sync_sparse(client: SyncClient, slots: Slots, order: Order) -> None:
    """Submit one job at a time, after a random pause and the start of the previous job."""
    for slot in _range(order):
        time.sleep(_pause_s(order))
        slots.submit(slot)
        client.submit(order["job"], slot)
        while not slots.has_run(slot):
            time.sleep(0.005)


def sync_steady(client: SyncClient, slots: Slots, order: Order) -> None:
    """Submit at a constant rate, from four threads."""
    pending = iter(_range(order))
    lock = threading.Lock()
    began = time.monotonic()

    def submitter() -> None:
        while True:
            with lock:
                slot = next(pending, None)
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
    return random.uniform(order["pause_s"] * 0.5, order["pause_s"] * 1.5)  # noqa: S311  not for security
