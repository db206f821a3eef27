"""Every call to Postgres and Redis fails now and then, is late, or is carried out and reported as failed, while ordinary jobs run."""

import asyncio
from dataclasses import replace

import pytest

from tests.chaos.gateways import Dice, Rates, wrapped
from tests.chaos.scenario import Scenario
from tests.chaos.worker import Plan

CLIENT = frozenset({"store.submit", "store.cancel", "queue.enqueue", "events.publish"})
"""What the submitting side calls: it breaks too."""


@pytest.mark.parametrize(("rate", "jobs"), [(0.01, 150), (0.1, 50)])
async def test_calls_may_fail_be_late_or_lie(run: Scenario, rate: float, jobs: int) -> None:
    rates = Rates(seed=run.seed, error=rate, late_error=rate, delay=rate)
    for number in range(2):
        await run.start_worker(Plan(rates=replace(rates, seed=run.seed * 10 + number)))
    with wrapped([Dice(rates, run.journal)], names=CLIENT):
        ids = await run.submit_all(run.workload.mixed(jobs))
        for start in range(4):
            await run.submit_many([run.workload.call("chaos_ok") for _ in range(start * 5 + 1)])
        waiting = await run.submit_all([run.workload.call("chaos_ok", delay_s=3.0) for _ in range(5)])
        works = await run.submit_all([run.workload.call("chaos_works", seconds=4.0) for _ in range(3)])
        chosen = [record for record in (*ids[:5], *waiting, *works) if record is not None]
        await asyncio.gather(*(run.cancel(record) for record in chosen))
    history = await run.judge()
    assert any(fault.kind == "call" for fault in history.faults)


async def test_a_failed_job_is_replayed_and_runs_on_with_a_higher_attempt(run: Scenario) -> None:
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
