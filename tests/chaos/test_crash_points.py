"""A crash, an error, a lost answer and a delay at every call that a worker makes to its servers, one run each."""

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
from tests.chaos.gateways import Act, Point, verbs
from tests.chaos.nursery import Nursery
from tests.chaos.scenario import Scenario, scenario
from tests.chaos.worker import Plan
from tests.conftest import Servers, with_database

LEASE_S = 1.0
LATE_S = 1.5
"""Longer than a lease: what is late has been given to somebody else meanwhile."""

TOGETHER = 6
"""Runs at once: they wait for leases to end most of the time."""

REACH_S = 20.0
"""A worker comes within a second to what the workload leads to; a machine with other work needs longer."""

LOOK_S = 5.0
"""The same for a verb that the workload may not lead to."""

REACHED = (
    *(
        "store.start",
        "store.renew",
        "store.finish",
        "store.standing",
        "store.reap",
        "store.overdue",
        "store.queued",
        "store.epoch",
        "store.note_epoch",
        "store.claim_restore",
        "store.transaction",
    ),
    *(
        "queue.claim",
        "queue.enqueue",
        "queue.renew",
        "queue.ack",
        "queue.sleep",
        "queue.tell_health",
        "queue.sleep_and_claim",
        "queue.nudge",
    ),
    *("queue.sweep", "queue.epoch", "dead_letters.add", "queue.aborts", "queue.eviction"),
    *("events.publish", "events.position"),
)
"""Verbs that the workload is known to lead to; one that is new to a gateway is tried as well, and passes if it is never called."""

LEAVING = frozenset({"queue.nudge"})
"""Verbs that a worker calls when it is told to stop while it sleeps."""

STOPPED = 3
"""Workers that are told so: one of them may just not sleep."""

PLACES = [(place, act) for act in (Act.EXIT, Act.FAIL, Act.DELAY) for place in ("before", "after")]


def points(verb: str) -> list[Point]:
    return [Point(verb=verb, place=place, act=act, delay_s=LATE_S * (act is Act.DELAY)) for place, act in PLACES]


@asynccontextmanager
async def database(servers: Servers) -> AsyncGenerator[str]:
    """One more database, for a run beside others."""
    name = f"chaos_{uuid4().hex}"
    statement = f'CREATE DATABASE "{name}" TEMPLATE "{servers.template}" STRATEGY file_copy'
    await query(servers.database_url, statement + ";")
    try:
        yield with_database(servers.database_url, name)
    finally:
        await query(servers.database_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE);')


@pytest.mark.parametrize("verb", sorted(verbs()))
async def test_a_worker_may_break_at_any_call(verb: str, servers: Servers, nursery: Nursery, tmp_path: Path) -> None:
    limit = asyncio.Semaphore(TOGETHER)

    async def try_point(point: Point) -> bool:
        async with limit, database(servers) as url, arena(url) as made:
            return await breaks_at(point, made, nursery, tmp_path / f"{point.place}-{point.act}")

    async with asyncio.TaskGroup() as group:
        tries = [group.create_task(try_point(point), name=str(point)) for point in points(verb)]
    reached = [str(task.get_name()) for task in tries if task.result()]
    if verb in REACHED:
        assert len(reached) == len(tries), f"only {reached} were reached: does the workload still lead to {verb}?"
    elif not reached:
        pytest.skip(f"no worker called {verb}")


async def breaks_at(point: Point, arena: Arena, nursery: Nursery, folder: Path) -> bool:
    """One run with one broken call; answers whether the worker came there."""
    async with scenario(arena, nursery, folder, lease_s=LEASE_S) as run:
        await prepare(run, behind=point.verb == "store.claim_restore")
        plan = Plan(point=point, without=("claims in sleep",) if point.verb == "queue.sleep" else ())
        if point.verb in LEAVING:
            await leave(run, plan)
        else:
            run.fork_worker(plan)
        reached = await until(REACH_S if point.verb in REACHED else LOOK_S, run.reached)
        await run.start_worker()
        await run.judge()
        return reached


async def leave(run: Scenario, plan: Plan) -> None:
    """Workers that have nothing left to do are told to stop, and while they do there is a job again."""
    workers = [await run.start_worker(plan) for _ in range(STOPPED)]
    await run.settle()
    stopping = asyncio.gather(*(run.stop(worker) for worker in workers))
    await run.submit(run.workload.call("chaos_ok"))
    await stopping


async def prepare(run: Scenario, *, behind: bool) -> None:
    """Work for every verb: jobs of each kind, one without a record, one that died elsewhere, one that Redis never heard of, one cancelled.

    Redis holds something that is no job, and may be `behind` its epoch: then everything is scheduled again, before the reconciler
    finds what is overdue.
    """
    await run.submit_all(run.workload.each())
    cancelled = await run.submit(run.workload.call("chaos_ok"))
    assert cancelled is not None
    await run.cancel(cancelled)
    ok = run.workload.call("chaos_ok")
    unheard = NewRecord(id=new_id(), job=ok.job, queue="default", args_json=b'{"tag": "unheard"}', delay_s=-2.0)
    dead = NewRecord(id=new_id(), job=ok.job, queue="default", args_json=b'{"tag": "dead"}')
    await run.plane.store.submit([unheard, dead])
    with run.died_elsewhere():
        await run.plane.store.start("dead worker", [dead.id], "dead", -1.0)
    await run.plane.queue.enqueue([EnqueueRequest.of_record("default", Priority.NORMAL, dead.id, ok.job, 0)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=0.5)])
    if behind:
        await run.plane.store.note_epoch(5)
    await run.arena.redis_command("HSET", "arq:job:foreign", "is", "foreign")
    await run.arena.redis_command("ZADD", "arq:queue", "1", "foreign")
