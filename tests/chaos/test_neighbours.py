"""A plain arq worker serves the same queue.

Each worker runs the jobs that it knows, and no job that the other one drops is lost.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cplane.postgres.rows import NewRecord
from cplane.runtime.ids import new_id
from cplane.worker.reconciler import OVERDUE_LIMIT, Reconciler
from tests.chaos.arena import until
from tests.chaos.nursery import ROOT
from tests.chaos.scenario import Scenario
from tests.workers import no_quarantines


@asynccontextmanager
async def plain_worker(run: Scenario) -> AsyncGenerator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "tests.chaos.plain_arq.Settings",
        cwd=ROOT, env=os.environ | {"CPLANE_REDIS_URL": run.arena.redis_url, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert await until(20, lambda: serves(run))
        yield
    finally:
        process.kill()
        await process.wait()


async def serves(run: Scenario) -> bool:
    return bool(await run.arena.redis_command("EXISTS", "arq:queue:health-check"))


async def test_recorded_jobs_finish_next_to_a_plain_arq_worker(run: Scenario) -> None:
    """The arq worker claims them, does not know them and drops them, as arq does.

    The reconciler schedules them again.
    """
    async with plain_worker(run):
        await run.start_worker()
        await run.submit_all(run.workload.mixed(20))
        await run.submit_all([run.workload.call("chaos_ok", delay_s=1.0 + n / 10) for n in range(20)])
        await run.judge()


async def test_transient_jobs_finish_in_either_worker(run: Scenario) -> None:
    async with plain_worker(run):
        await run.start_worker()
        transient = [await run.plane.create_job("chaos_transient", {"x": n}) for n in range(20)]
        await run.submit_all(run.workload.mixed(10))
        assert [await handle.result(30) for handle in transient] == [n + 1 for n in range(20)]
        await run.judge()


async def test_a_job_behind_many_unknown_ones_is_scheduled_again(run: Scenario) -> None:
    """There are more unknown jobs than one pass of the reconciler reads, and all of them are due earlier."""
    others = [
        NewRecord(id=new_id(), job="elsewhere", queue="default", args_json=b"{}", delay_s=-60.0)
        for _ in range(2 * OVERDUE_LIMIT)
    ]
    ours = NewRecord(id=new_id(), job="chaos_ok", queue="default", args_json=b"{}", delay_s=-30.0)
    await run.plane.store.submit([*others, ours])
    reconciler = Reconciler(
        "w", run.plane.store, run.plane.queue, run.plane.events, ["default"], quarantines=no_quarantines()
    )
    for _ in range(3):
        await reconciler.run()
    assert str(ours.id) in await run.arena.scheduled()
