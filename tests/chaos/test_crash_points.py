"""A crash, an error, a lost reply and a delay at every call of a worker to its servers, one scenario each."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from cplane.jobs.states import Priority
from cplane.postgres.rows import NewRecord
from cplane.redis.messages import EnqueueRequest
from cplane.runtime.ids import new_id
from tests.chaos.arena import Arena, arena, query, until
from tests.chaos.gateways import Action, Point, verbs
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import Scenario, scenario
from tests.chaos.worker import Plan
from tests.conftest import Servers, with_database

LEASE_S = 1.0
LATE_S = 1.5
"""Longer than a lease: by then another worker has taken over."""

CONCURRENT_RUNS = 6
"""Concurrent scenarios: most of the time they wait for leases to expire."""

REACH_TIMEOUT_S = 20.0
"""A worker reaches an expected verb within a second; a busy machine needs longer."""

PROBE_TIMEOUT_S = 5.0
"""The same for a verb that the workload may not call."""

EXPECTED_VERBS = (
    *(
        "store.start",
        "store.renew",
        "store.finish",
        "store.schedule_rows",
        "store.reap",
        "store.overdue",
        "store.queued",
        "store.epoch",
        "store.record_epoch",
        "store.claim_restore",
        "store.transaction",
    ),
    *(
        "queue.claim",
        "queue.enqueue",
        "queue.renew",
        "queue.ack",
        "queue.sleep",
        "queue.write_health",
        "queue.sleep_and_claim",
        "queue.nudge",
    ),
    *("queue.sweep", "queue.epoch", "dead_letters.add", "queue.aborts", "queue.eviction_policy"),
    *("events.publish", "events.position"),
)
"""Verbs that the workload calls. A verb that is new in a gateway is tried too, and skipped if it is never called."""

STOP_VERBS = frozenset({"queue.nudge"})
"""Verbs that a worker calls when it is stopped while it sleeps."""

STOPPED_WORKERS = 3
"""Workers that are stopped, in case one of them does not sleep at that moment."""

PLACES = [
    *((place, act) for act in (Action.EXIT, Action.FAIL) for place in ("before", "after")),
    ("after", Action.DELAY),  # before a call, it is a late call
]


def points(verb: str) -> list[Point]:
    return [Point(verb=verb, place=place, act=act, delay_s=LATE_S * (act is Action.DELAY)) for place, act in PLACES]


@asynccontextmanager
async def database(servers: Servers) -> AsyncGenerator[str]:
    """Create another database, for a scenario that runs concurrently with others."""
    name = f"chaos_{uuid4().hex}"
    statement = f'CREATE DATABASE "{name}" TEMPLATE "{servers.template}" STRATEGY file_copy'
    await query(servers.database_url, statement + ";")
    try:
        yield with_database(servers.database_url, name)
    finally:
        await query(servers.database_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE);')


@pytest.mark.parametrize("verb", sorted(verbs()))
async def test_no_rule_breaks_when_a_worker_fails_at_a_call(
    verb: str, servers: Servers, nursery: Nursery, tmp_path: Path
) -> None:
    limit = asyncio.Semaphore(CONCURRENT_RUNS)

    async def try_point(point: Point) -> bool:
        async with limit, database(servers) as url, arena(url) as made:
            return await reaches(point, made, nursery, tmp_path / f"{point.place}-{point.act}")

    async with asyncio.TaskGroup() as group:
        tries = [group.create_task(try_point(point), name=str(point)) for point in points(verb)]
    reached = [str(task.get_name()) for task in tries if task.result()]
    if verb in EXPECTED_VERBS:
        assert len(reached) == len(tries), f"only {reached} were reached: does the workload still call {verb}?"
    elif not reached:
        pytest.skip(f"no worker called {verb}")


async def reaches(point: Point, arena: Arena, nursery: Nursery, folder: Path) -> bool:
    """Run one scenario with one fault, and return whether a worker reached it."""
    async with scenario(arena, nursery, folder, lease_s=LEASE_S) as run:
        await prepare(run, behind=point.verb == "store.claim_restore")
        plan = Plan(point=point, without=("claims in sleep",) if point.verb == "queue.sleep" else ())
        if point.verb in STOP_VERBS:
            await stop_idle_workers(run, plan)
        else:
            run.fork_worker(plan)
        reached = await until(REACH_TIMEOUT_S if point.verb in EXPECTED_VERBS else PROBE_TIMEOUT_S, run.reached)
        await run.start_worker()
        await run.judge()
        return reached


async def stop_idle_workers(run: Scenario, plan: Plan) -> None:
    """Stop workers that are idle, and submit a job while they stop."""
    workers = [await run.start_worker(plan) for _ in range(STOPPED_WORKERS)]
    await run.wait_until_final()
    stopping = asyncio.gather(*(run.stop(worker) for worker in workers))
    await run.submit(run.workload.call("chaos_ok"))
    await stopping


async def prepare(run: Scenario, *, behind: bool) -> None:
    """Create work for every verb.

    There are jobs of each kind, a transient one, one with a dead worker, one that Redis lacks, and a cancelled one.

    Redis contains an entry that is not a job. If it is `behind` its epoch, everything is scheduled again before the
    reconciler finds what is overdue.
    """
    await run.submit_all(run.workload.each())
    cancelled = await run.submit(run.workload.call("chaos_ok"))
    assert cancelled is not None
    await run.cancel(cancelled)
    ok = run.workload.call("chaos_ok")
    unscheduled = NewRecord(id=new_id(), job=ok.job, queue="default", args_json=b'{"tag": "unscheduled"}', delay_s=-2.0)
    dead = NewRecord(id=new_id(), job=ok.job, queue="default", args_json=b'{"tag": "dead"}')
    await run.plane.store.submit([unscheduled, dead])
    with run.lost_with_another_worker():
        await run.plane.store.start("dead worker", [dead.id], "dead", -1.0)
    await run.plane.queue.enqueue([EnqueueRequest.of_record("default", Priority.NORMAL, dead.id, ok.job, 0)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=0.5)])
    if behind:
        await run.plane.store.record_epoch(5)
    await run.arena.redis_command("HSET", "arq:job:foreign", "is", "foreign")
    await run.arena.redis_command("ZADD", "arq:queue", "1", "foreign")
