"""The wall clock of a worker is set an hour forward or back. Leases and due times must not depend on it."""

import signal

import pytest

from tests.chaos.arena import until
from tests.chaos.history import FaultKind
from tests.chaos.scenario import Scenario
from tests.chaos.worker import Plan


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
async def test_a_clock_step_loses_no_lease_and_shifts_no_due_time(run: Scenario, step_s: float) -> None:
    stepped = await run.start_worker(Plan(clock_s=step_s))
    await run.start_worker()
    await run.submit_all([run.workload.call("chaos_works", seconds=3.0) for _ in range(3)])
    await run.submit_all([run.workload.call("chaos_ok", delay_s=2.0 + n / 4) for n in range(8)])
    await run.submit_transient(run.workload.unrecorded(4, max_s=3.0))
    await run.submit_all([run.workload.call("chaos_flaky") for _ in range(4)])
    await run.until_runs(3)
    with run.fault(FaultKind.CLOCK, pid=stepped.pid):
        stepped.send(signal.SIGUSR1)
        assert await until(10, lambda: clock_was_set(run))
    await run.submit_all(run.workload.mixed(15))
    history = await run.judge()
    ran = {run.pid for run in history.runs}
    assert stepped.pid in ran
    assert not any(attempt.cause == "lost" for attempt in history.attempts) or history.faults


async def clock_was_set(run: Scenario) -> bool:
    return any(line["event"] == "stepped" for line in run.journal.lines())
