"""Redis is killed, emptied and set back; Postgres is restarted and loses its sessions. What was accepted is done all the same."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chaos.arena import Arena
from tests.chaos.history import FaultKind
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import AFTER_S, Scenario, scenario
from tests.chaos.test_found import BROKEN_OFF_IS_THE_JOBS_FAULT

AWAY_S = 1.5

LEFT_OUT = ("chaos_writes",) if BROKEN_OFF_IS_THE_JOBS_FAULT else ()


async def redis_restarts_empty(run: Scenario) -> None:
    await run.arena.kill_redis()
    run.arena.load_redis(None)
    await run.submit_all(run.workload.mixed(5))
    await asyncio.sleep(AWAY_S)
    await run.arena.start_redis()


async def redis_restarts_from_an_older_copy(run: Scenario) -> None:
    """What was done since is there again, what was submitted since is not."""
    saved = run.arena.save_redis()
    await run.submit_all(run.workload.mixed(20))
    await asyncio.sleep(AWAY_S)
    await run.arena.kill_redis()
    run.arena.load_redis(saved)
    await run.arena.start_redis()


async def redis_is_flushed(run: Scenario) -> None:
    await run.arena.flush_redis()
    await run.submit_all(run.workload.mixed(10))
    await asyncio.sleep(0.3)
    await run.arena.flush_redis()


@pytest.mark.parametrize(
    "lose", [redis_restarts_empty, redis_restarts_from_an_older_copy, redis_is_flushed], ids=lambda lose: lose.__name__
)
async def test_nothing_is_lost_with_redis(run: Scenario, lose: Callable[[Scenario], Awaitable[None]]) -> None:
    workers = [await run.start_worker(CPLANE_QUEUES="default:4") for _ in range(2)]
    await run.submit_all(run.workload.mixed(40, longest_s=2.0))
    await run.until_runs(4)
    with run.fault(FaultKind.REDIS, lose.__name__, after_s=AFTER_S):
        await lose(run)
    await run.submit_all(run.workload.mixed(5))
    await run.judge()
    assert all(worker.alive for worker in workers)


async def postgres_restarts_fast(run: Scenario) -> None:
    await run.arena.stop_postgres(signal.SIGINT)
    await asyncio.sleep(AWAY_S)
    await run.arena.start_postgres()


async def postgres_crashes(run: Scenario) -> None:
    await run.arena.stop_postgres(signal.SIGQUIT)
    await run.arena.start_postgres()


async def sessions_are_ended(run: Scenario) -> None:
    for _ in range(6):
        await run.arena.end_sessions()
        await run.submit_all(run.workload.mixed(3, without=LEFT_OUT))
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    "lose", [postgres_restarts_fast, postgres_crashes, sessions_are_ended], ids=lambda lose: lose.__name__
)
async def test_nothing_is_lost_with_the_sessions_of_postgres(
    own_arena: Arena, nursery: Nursery, tmp_path: Path, lose: Callable[[Scenario], Awaitable[None]]
) -> None:
    async with scenario(own_arena, nursery, tmp_path) as run:
        workers = [await run.start_worker(CPLANE_QUEUES="default:6") for _ in range(2)]
        await run.submit_all(run.workload.mixed(40, longest_s=2.0, without=LEFT_OUT))
        await run.until_runs(4)
        with run.fault(FaultKind.POSTGRES, lose.__name__, after_s=AFTER_S):
            await lose(run)
        await run.submit_all(run.workload.mixed(5, without=LEFT_OUT))
        await run.judge()
        assert all(worker.alive for worker in workers)
