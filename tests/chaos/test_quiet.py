"""Without a fault every job runs once, and no rule is broken."""

from tests.chaos.scenario import Scenario


async def test_without_faults_each_job_runs_as_often_as_its_retries_need(run: Scenario) -> None:
    await run.start_worker()
    await run.start_worker()
    await run.submit_all([*run.workload.each(), *run.workload.mixed(40)])
    await run.submit_many([run.workload.call("chaos_ok") for _ in range(20)])
    await run.submit_transient(run.workload.unrecorded(10))
    history = await run.judge()
    assert len(history.transient_runs) == 10 or history.faults
    assert {attempt.cause for attempt in history.attempts} <= {"submit", "retry"} or history.faults
