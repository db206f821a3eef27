"""What the suite has found and the product does not do yet. Each test fails the day it is mended: then it goes where it belongs."""

import asyncio
from uuid import UUID

import pytest
from sqlalchemy.exc import InternalError

from cplane.database import is_outage
from cplane.reconciler import Reconciler
from cplane.store import NewRecord
from cplane.uuid7 import new_id
from tests.chaos.history import FaultKind
from tests.chaos.scenario import Scenario

MANY = 500
"""As many as a pass of the reconciler looks at."""


class InternalClientError(Exception):
    """What SQLAlchemy makes of asyncpg's error of that name."""


def broken_off() -> InternalError:
    """What a statement raises whose connection ends while it is being sent: "cannot switch to state 11; another operation is in progress"."""
    import asyncpg

    original = InternalClientError("cannot switch to state 11; another operation (2) is in progress")
    original.__cause__ = asyncpg.InternalClientError(str(original))
    error = InternalError("INSERT", {}, original)
    error.__cause__ = original
    return error


BROKEN_OFF_IS_THE_JOBS_FAULT = not is_outage(broken_off())
"""A job whose transaction Postgres ends just then fails without a retry. While it is so, runs that end sessions leave such jobs out."""


@pytest.mark.xfail(BROKEN_OFF_IS_THE_JOBS_FAULT, reason="is_outage does not know asyncpg.InternalClientError")
def test_a_connection_that_ends_under_a_statement_is_no_fault_of_the_job() -> None:
    assert is_outage(broken_off())


@pytest.mark.xfail(reason="enqueue leaves an id that is there where it is, however far ahead")
async def test_a_replayed_job_is_due_at_once_whatever_it_waited_for_before(run: Scenario) -> None:
    record = await run.submit(run.workload.call("chaos_ok", delay_s=600.0))
    assert record is not None
    await run.cancel(record)
    await run.replay(record)
    grants = (await run.plane.queue.claim("default", 10, 30.0)).grants
    assert [UUID(grant.id) for grant in grants] == [record]


@pytest.mark.xfail(reason="overdue answers the same 500 at each pass while nobody here can run them")
async def test_a_job_behind_many_that_nobody_can_run_is_scheduled_again(run: Scenario) -> None:
    others = [
        NewRecord(id=new_id(), job="elsewhere", queue="default", args_json=b"{}", delay_s=-60.0) for _ in range(MANY)
    ]
    ours = NewRecord(id=new_id(), job="chaos_ok", queue="default", args_json=b"{}", delay_s=-30.0)
    await run.plane.store.submit([*others, ours])
    reconciler = Reconciler(run.plane.store, run.plane.queue, run.plane.events, ["default"])
    for _ in range(3):
        await reconciler.run()
    assert str(ours.id) in await run.arena.scheduled()


KNOWN_CUT_OFF = frozenset({"runs alone"})
"""What a worker that is cut off from Postgres is known to break. Empty it when the test below passes."""


@pytest.mark.xfail(reason="while a renewal hangs, nobody looks which leases can no longer be trusted")
async def test_a_worker_that_hears_nothing_from_postgres_stops_before_its_lease_ends(run: Scenario) -> None:
    await run.start_worker(proxied=True)
    await run.submit_all([run.workload.call("chaos_works", seconds=8.0)])
    await run.until_runs(1)
    with run.fault(FaultKind.PARTITION, "postgres: hold", after_s=1.0):
        run.arena.postgres_proxy.hold()
        await run.start_worker()
        while not (reaped := await run.plane.store.reap(10)):
            await asyncio.sleep(0.02)
        await run.until_runs(1, attempt=2)
        run.arena.postgres_proxy.reset()
        run.arena.postgres_proxy.heal()
    assert len(reaped) == 1
    await run.judge()
