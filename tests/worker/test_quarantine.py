"""Jobs that were aboard two crashes wait in the quarantine; a worker without a keeper runs them one at a time."""

import asyncio
from typing import Any

from cplane import ControlPlane, CplaneSettings, Handle, job
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import ALONE_AFTER
from cplane.redis.envelope import decode_result
from cplane.redis.keys import redis_name
from cplane.redis.messages import Lease
from cplane.worker import Worker
from cplane.worker.reconciler import Reconciler
from tests.workers import DEADLINE_S, Gate, kept_result, no_quarantines, running

QUARANTINE = quarantine_of("default")
running_at_once: list[int] = [0, 0]
gate = Gate()


@job
async def suspected(n: int) -> int:
    running_at_once[0] += 1
    running_at_once[1] = max(running_at_once)
    await asyncio.sleep(0)
    running_at_once[0] -= 1
    return n


@job(record=False)
async def suspected_transient(n: int) -> int:
    return n


@job
async def not_suspected() -> str:
    await gate.pass_through()
    return "passed"


async def aboard_two_crashes(plane: ControlPlane, *handles: Handle[Any]) -> None:
    """Let two workers die with these records aboard; the reconciler queues them again."""
    reconciler = Reconciler("w", plane.store, plane.queue, plane.events, ["default"], quarantines=no_quarantines())
    for crash in range(ALONE_AFTER):
        await plane.store.start("w", [handle.id for handle in handles], f"token {crash}", -1.0)
        await reconciler.run()


async def lost_lease(plane: ControlPlane, queue: str) -> Lease:
    """Lease the only job of a queue, as a worker that dies at once."""
    async with asyncio.timeout(DEADLINE_S):
        while not (leases := (await plane.queue.claim(queue, 1, 0.001)).leases):
            await asyncio.sleep(0.001)
    return leases[0]


async def test_a_worker_without_a_keeper_runs_suspects_one_at_a_time_beside_the_others(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handles = await suspected.submit_many([{"n": n} for n in range(5)])
    await aboard_two_crashes(plane, *handles)
    other = await not_suspected.submit()
    async with running(settings):
        assert [await handle.result(DEADLINE_S) for handle in handles] == list(range(5))
        gate.open.set()
        assert await other.result(DEADLINE_S) == "passed"
    assert running_at_once == [0, 1]
    record = await plane.store.get(handles[0].id)
    assert (record.attempt, record.suspicions, record.crashes, record.queue) == (3, 2, 0, "default")


async def test_a_burst_worker_without_a_keeper_empties_the_quarantine(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await suspected.submit(1)
    await aboard_two_crashes(plane, handle)
    async with asyncio.timeout(DEADLINE_S):
        await Worker(settings=settings, handle_signals=False, burst=True).async_run()
    assert await handle.result(1) == 1


async def test_the_third_try_of_a_transient_job_runs_alone(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await suspected_transient.submit(7)
    for _ in range(ALONE_AFTER):
        await lost_lease(plane, "default")
    async with running(settings):
        assert await handle.result(DEADLINE_S) == 7
    kept = decode_result(await kept_result(plane, str(handle.id)))
    assert (kept.t, kept.q) == (3, redis_name(QUARANTINE))


async def test_the_queues_show_a_quarantine_that_is_not_empty(plane: ControlPlane) -> None:
    handle = await suspected.submit(1)
    assert [stats.queue for stats in await plane.queues() if stats.queue.startswith("default")] == ["default"]
    await aboard_two_crashes(plane, handle)
    found = {stats.queue: stats.ready for stats in await plane.queues()}
    assert found[QUARANTINE] == 1
