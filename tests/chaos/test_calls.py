"""Calls to Postgres and Redis fail, are delayed, or are done and reported as failed, while ordinary jobs run."""

import asyncio
import os
from dataclasses import replace
from uuid import UUID

import pytest

from tests.chaos.gateways import Rates
from tests.chaos.scenario import Scenario
from tests.chaos.worker import Plan

CLIENT = frozenset({"store.submit", "store.flush", "store.cancel", "queue.enqueue", "events.publish"})
"""The verbs of the client, whose calls fail too."""

BROKEN_CALLS_S = 30.0
"""Maximum duration of the faults: a job whose every run meets one backs off longer before each retry."""

BATCH = 5
"""Concurrent submissions, which go in one call."""


@pytest.mark.parametrize(("rate", "jobs"), [(0.01, 150), (0.1, 50)])
async def test_no_rule_breaks_when_calls_fail_are_late_or_are_misreported(
    run: Scenario, rate: float, jobs: int
) -> None:
    rates = Rates(seed=run.seed, error=rate, late_error=rate, delay=rate)
    for number in range(2):
        await run.start_worker(Plan(rates=replace(rates, seed=run.seed * 10 + number)))
    async with run.failing_client(rates, CLIENT):
        ids = [record for _ in range(0, jobs, BATCH) for record in await run.submit_all(run.workload.mixed(BATCH))]
        for start in range(4):
            await run.submit_many([run.workload.call("chaos_ok") for _ in range(start * 5 + 1)])
        delayed = await run.submit_all([run.workload.call("chaos_ok", delay_s=3.0) for _ in range(5)])
        running = await run.submit_all([run.workload.call("chaos_works", seconds=4.0) for _ in range(3)])
        chosen = [record for record in (*ids[:5], *delayed, *running) if record is not None]
        await asyncio.gather(*(run.cancel(record) for record in chosen))
    await run.wait_until_final(BROKEN_CALLS_S)
    run.heal_calls()
    history = await run.judge()
    faulty = {
        (fault.pid == os.getpid(), fault.note.partition(".")[0]) for fault in history.faults if fault.kind == "call"
    }
    assert {(False, "store"), (False, "queue")} <= faulty
    assert rate < 0.1 or {(True, "store"), (True, "queue")} <= faulty


async def test_a_replayed_job_continues_with_a_higher_attempt(run: Scenario) -> None:
    await run.start_worker()
    failing = await run.submit(run.workload.call("chaos_fails"))
    cancelled = await run.submit(run.workload.call("chaos_ok", delay_s=3.0))
    assert failing is not None
    assert cancelled is not None
    await run.plane.wait(failing, 20)
    await run.cancel(cancelled)
    await run.replay(failing)
    await run.replay(cancelled)
    history = await run.judge()
    assert {attempt.attempt for attempt in history.attempts if attempt.record == str(failing)} == set(range(1, 7))


async def test_a_replayed_job_is_ready_immediately_despite_its_delay(run: Scenario) -> None:
    record = await run.submit(run.workload.call("chaos_ok", delay_s=600.0))
    assert record is not None
    await run.cancel(record)
    await run.replay(record)
    leases = (await run.plane.queue.claim("default", 10, 30.0)).leases
    assert [UUID(lease.id) for lease in leases] == [record]
