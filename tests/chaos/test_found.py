"""What the suite has found and the product does not do yet. Each test fails the day it is mended: then it goes where it belongs."""

from cplane.worker.reconciler import Reconciler
from tests.chaos.scenario import Scenario


async def test_a_replay_that_redis_never_heard_of_is_due_by_the_next_pass(run: Scenario) -> None:
    """As after a client that died, or a Redis that was away, between the record and its push."""
    record = await run.submit(run.workload.call("chaos_ok", delay_s=600.0))
    assert record is not None
    await run.cancel(record)
    await run.plane.store.replay(record)
    await run.arena.query("UPDATE cplane.jobs SET run_at = run_at - interval '2 seconds' WHERE id = $1", record)
    await Reconciler("w", run.plane.store, run.plane.queue, run.plane.events, ["default"]).run()
    leases = (await run.plane.queue.claim("default", 10, 30.0)).leases
    assert [lease.id for lease in leases] == [str(record)]
