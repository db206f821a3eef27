"""The network between a worker and a server is cut, held in either direction, or slow. The client and another worker are not touched."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.arena import arena
from tests.chaos.history import FaultKind
from tests.chaos.nursery import Nursery
from tests.chaos.proxy import Proxy
from tests.chaos.scenario import AFTER_S, Scenario, scenario
from tests.chaos.test_crash_points import database
from tests.conftest import Servers

HELD_S = 3.5
"""Longer than the lease: somebody else takes over."""


def hold_both(proxy: Proxy) -> None:
    proxy.hold()


def hold_questions(proxy: Proxy) -> None:
    proxy.to_server.hold()


def hold_answers(proxy: Proxy) -> None:
    """Everything is carried out, and nobody hears of it."""
    proxy.to_client.hold()


def cut(proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.reset()


def slow(proxy: Proxy) -> None:
    proxy.to_server.delay_s = proxy.to_client.delay_s = 0.15


FAULTS: tuple[Callable[[Proxy], None], ...] = (hold_both, hold_questions, hold_answers, cut, slow)


@pytest.mark.parametrize("server", ["postgres", "redis"])
async def test_a_worker_is_cut_off(server: str, servers: Servers, nursery: Nursery, tmp_path: Path) -> None:
    """Each way of it in an arena of its own, side by side: they wait most of the time."""

    async def cut_off(break_off: Callable[[Proxy], None]) -> None:
        async with (
            database(servers) as url,
            arena(url) as made,
            scenario(made, nursery, tmp_path / break_off.__name__) as run,
        ):
            await a_worker_is_cut_off(run, server, break_off)

    async with asyncio.TaskGroup() as group:
        for break_off in FAULTS:
            group.create_task(cut_off(break_off), name=break_off.__name__)


async def a_worker_is_cut_off(run: Scenario, server: str, break_off: Callable[[Proxy], None]) -> None:
    cut_off = await run.start_worker(proxied=True)
    await run.submit_all(run.workload.mixed(15, longest_s=1.0))
    await run.submit_all([run.workload.call("chaos_works", seconds=4.0) for _ in range(3)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=4.0)])
    await run.until_runs(8)
    proxy = run.arena.postgres_proxy if server == "postgres" else run.arena.redis_proxy
    with run.fault(FaultKind.PARTITION, f"{server}: {break_off.__name__}", after_s=AFTER_S):
        break_off(proxy)
        await run.start_worker()
        await run.submit_all(run.workload.mixed(5))
        await asyncio.sleep(HELD_S)
        if break_off is not slow:
            proxy.reset()  # what was held for so long has been given up by then
        proxy.heal()
    await run.submit_all(run.workload.mixed(5))
    await run.judge()
    assert cut_off.alive


async def test_a_worker_that_hears_nothing_from_postgres_stops_before_its_lease_ends(run: Scenario) -> None:
    await run.start_worker(proxied=True)
    await run.submit_all([run.workload.call("chaos_works", seconds=8.0)])
    await run.until_runs(1)
    with run.fault(FaultKind.PARTITION, "postgres: hold", after_s=1.0):
        run.arena.postgres_proxy.hold()
        await run.start_worker()
        await run.until_runs(1, attempt=2)
        run.arena.postgres_proxy.reset()
        run.arena.postgres_proxy.heal()
    await run.judge()
