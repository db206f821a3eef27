"""Redis is killed, emptied and restored from an older copy; Postgres restarts and loses its sessions.

Every accepted job still finishes.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cplane.errors import QueueUnavailable
from cplane.worker.reconciler import Reconciler
from tests.chaos.arena import Arena, until
from tests.chaos.history import FaultKind
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import FAULT_TAIL_S, Scenario, scenario
from tests.workers import no_quarantines

DOWNTIME_S = 1.5


async def redis_restarts_empty(run: Scenario) -> None:
    await run.arena.kill_redis()
    run.arena.load_redis(None)
    await run.submit_all(run.workload.mixed(5))
    await asyncio.sleep(DOWNTIME_S)
    await run.arena.start_redis()


async def redis_restarts_from_an_older_copy(run: Scenario) -> None:
    """Jobs that finished since the copy are in Redis again; jobs that were submitted since are not."""
    saved = run.arena.save_redis()
    await run.submit_all(run.workload.mixed(20))
    await asyncio.sleep(DOWNTIME_S)
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
async def test_no_job_is_lost_with_the_data_of_redis(
    run: Scenario, lose: Callable[[Scenario], Awaitable[None]]
) -> None:
    workers = [await run.start_worker(CPLANE_QUEUES="default:4") for _ in range(2)]
    await run.submit_all(run.workload.mixed(40, max_s=2.0))
    await run.until_runs(4)
    with run.fault(FaultKind.REDIS, lose.__name__, after_s=FAULT_TAIL_S):
        await lose(run)
    assert await until(RESTORE_TIMEOUT_S, run.redis_has_all_queued)
    await run.submit_all(run.workload.mixed(5))
    await run.judge()
    assert all(worker.alive for worker in workers)


BACKLOG = 2500
"""More than the reconciler reads in a pass without a known loss."""

RESTORE_TIMEOUT_S = 5.0 + 1.0
"""The next pass starts within 5 s; plus its duration."""


async def loses_everything(run: Scenario, saved: Path) -> None:
    await run.arena.kill_redis()
    run.arena.load_redis(None)
    await run.arena.start_redis()


async def loses_what_is_new(run: Scenario, saved: Path) -> None:
    await run.arena.kill_redis()
    run.arena.load_redis(saved)
    await run.arena.start_redis()


async def is_flushed(run: Scenario, saved: Path) -> None:
    await run.arena.flush_redis()


@pytest.mark.parametrize("lose", [loses_everything, loses_what_is_new, is_flushed], ids=lambda lose: lose.__name__)
async def test_one_pass_schedules_the_whole_backlog_again(
    run: Scenario, lose: Callable[[Scenario, Path], Awaitable[None]]
) -> None:
    """The backlog consists of jobs that are due in an hour."""
    reconciler = Reconciler(
        "w", run.plane.store, run.plane.queue, run.plane.events, ["default"], quarantines=no_quarantines()
    )
    await reconciler.run()
    saved = run.arena.save_redis()
    await run.submit_many([run.workload.call("chaos_ok", delay_s=3600.0) for _ in range(BACKLOG)])
    await reconciler.run()
    assert len(await run.arena.scheduled()) == BACKLOG
    await lose(run, saved)
    assert not await run.arena.scheduled()
    assert await until(20, lambda: passed(reconciler))
    assert len(await run.arena.scheduled()) == BACKLOG


async def passed(reconciler: Reconciler) -> bool:
    """Return whether a pass succeeded: the first may use connections that ended with the server."""
    try:
        await reconciler.run()
    except QueueUnavailable:
        return False
    return True


async def postgres_restarts_fast(run: Scenario) -> None:
    await run.arena.stop_postgres(signal.SIGINT)
    await asyncio.sleep(DOWNTIME_S)
    await run.arena.start_postgres()


async def postgres_crashes(run: Scenario) -> None:
    await run.arena.stop_postgres(signal.SIGQUIT)
    await run.arena.start_postgres()


async def sessions_are_ended(run: Scenario) -> None:
    for _ in range(6):
        await run.arena.end_sessions()
        await run.submit_all(run.workload.mixed(3))
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    "lose", [postgres_restarts_fast, postgres_crashes, sessions_are_ended], ids=lambda lose: lose.__name__
)
async def test_no_job_is_lost_when_postgres_loses_its_sessions(
    own_arena: Arena, nursery: Nursery, tmp_path: Path, lose: Callable[[Scenario], Awaitable[None]]
) -> None:
    async with scenario(own_arena, nursery, tmp_path) as run:
        workers = [await run.start_worker(CPLANE_QUEUES="default:6") for _ in range(2)]
        await run.submit_all(run.workload.mixed(40, max_s=2.0))
        await run.until_runs(4)
        with run.fault(FaultKind.POSTGRES, lose.__name__, after_s=FAULT_TAIL_S):
            await lose(run)
        await run.submit_all(run.workload.mixed(5))
        await run.judge()
        assert all(worker.alive for worker in workers)


async def test_an_acknowledged_submission_survives_a_crash_of_postgres(
    own_arena: Arena, nursery: Nursery, tmp_path: Path
) -> None:
    """No worker runs, because the start of a job would flush the submission to disk."""
    async with scenario(own_arena, nursery, tmp_path) as run:
        for _ in range(5):
            with run.fault(FaultKind.POSTGRES, "crash", after_s=FAULT_TAIL_S):
                assert await until(20, lambda: accepted(run))
                await postgres_crashes(run)
        await run.start_worker()
        await run.judge()


async def accepted(run: Scenario) -> bool:
    """Return whether a submission succeeded: the first may use connections that ended with the server."""
    return await run.submit(run.workload.call("chaos_ok")) is not None
