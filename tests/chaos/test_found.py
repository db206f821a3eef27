"""Defects that the suite has found.

An open one is marked as expected to fail; a fixed one moves to the tests of its module.
"""

from cplane.worker.reconciler import Reconciler
from tests.chaos.scenario import Scenario
from tests.workers import no_quarantines


async def test_a_replay_that_redis_lacks_is_ready_after_the_next_pass(run: Scenario) -> None:
    """As if the client died, or Redis was unavailable, between the write of the record and its enqueue."""
    record = await run.submit(run.workload.call("chaos_ok", delay_s=600.0))
    assert record is not None
    await run.cancel(record)
    await run.plane.store.replay(record)
    await run.arena.query("UPDATE cplane.jobs SET run_at = run_at - interval '2 seconds' WHERE id = $1", record)
    await Reconciler(
        "w", run.plane.store, run.plane.queue, run.plane.events, ["default"], quarantines=no_quarantines()
    ).run()
    leases = (await run.plane.queue.claim("default", 10, 30.0)).leases
    assert [lease.id for lease in leases] == [str(record)]
