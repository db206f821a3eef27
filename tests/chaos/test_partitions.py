"""The network between a worker and a server is cut, blocked in either direction, or slow.

The client and another worker are not affected.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.arena import arena
from tests.chaos.history import FaultKind
from tests.chaos.nursery import Nursery
from tests.chaos.proxy import Proxy
from tests.chaos.scenario import FAULT_TAIL_S, Scenario, scenario
from tests.chaos.test_crash_points import database
from tests.conftest import Servers

PARTITION_S = 3.5
"""Longer than the lease, so that another worker takes over."""


def hold_both(proxy: Proxy) -> None:
    proxy.hold()


def hold_requests(proxy: Proxy) -> None:
    proxy.to_server.hold()


def hold_replies(proxy: Proxy) -> None:
    """Every call is done, but no reply arrives."""
    proxy.to_client.hold()


def cut(proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.reset()


def slow(proxy: Proxy) -> None:
    proxy.to_server.delay_s = proxy.to_client.delay_s = 0.15


FAULTS: tuple[Callable[[Proxy], None], ...] = (hold_both, hold_requests, hold_replies, cut, slow)


@pytest.mark.parametrize("server", ["postgres", "redis"])
async def test_no_rule_breaks_when_a_worker_is_partitioned(
    server: str, servers: Servers, nursery: Nursery, tmp_path: Path
) -> None:
    """Each fault has its own arena, and all run concurrently: they wait most of the time."""

    async def partition(fault: Callable[[Proxy], None]) -> None:
        async with (
            database(servers) as url,
            arena(url) as made,
            scenario(made, nursery, tmp_path / fault.__name__) as run,
        ):
            await partition_a_worker(run, server, fault)

    async with asyncio.TaskGroup() as group:
        for fault in FAULTS:
            group.create_task(partition(fault), name=fault.__name__)


async def partition_a_worker(run: Scenario, server: str, fault: Callable[[Proxy], None]) -> None:
    partitioned = await run.start_worker(proxied=True)
    await run.submit_all(run.workload.mixed(15, max_s=1.0))
    await run.submit_all([run.workload.call("chaos_works", seconds=4.0) for _ in range(3)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=4.0)])
    await run.until_runs(8)
    proxy = run.arena.postgres_proxy if server == "postgres" else run.arena.redis_proxy
    with run.fault(FaultKind.PARTITION, f"{server}: {fault.__name__}", after_s=FAULT_TAIL_S):
        fault(proxy)
        await run.start_worker()
        await run.submit_all(run.workload.mixed(5))
        await asyncio.sleep(PARTITION_S)
        if fault is not slow:
            proxy.reset()  # calls that were blocked for so long have been abandoned by then
        proxy.heal()
    await run.submit_all(run.workload.mixed(5))
    await run.judge()
    assert partitioned.alive


async def test_a_worker_without_replies_from_postgres_stops_before_its_lease_expires(run: Scenario) -> None:
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
