"""Workers are killed, frozen, blocked, stopped and poisoned, and their jobs continue in other workers."""

import asyncio
from collections import Counter

from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES
from tests.chaos.history import FaultKind
from tests.chaos.journal import TRANSIENT
from tests.chaos.scenario import Scenario

KILL_INTERVAL_S = 2.0


async def test_no_rule_breaks_when_a_random_worker_is_killed_every_two_seconds(run: Scenario) -> None:
    for _ in range(3):
        await run.start_worker()
    await run.submit_all(run.workload.mixed(60, max_s=3.0))
    await run.submit_transient(run.workload.unrecorded(10, max_s=3.0))
    for _ in range(4):
        await asyncio.sleep(KILL_INTERVAL_S)
        run.kill(run.random.choice([worker for worker in run.workers if worker.alive]))
        await run.start_worker()
        await run.submit_all(run.workload.mixed(10))
        await run.submit_transient(run.workload.unrecorded(3))
    history = await run.judge()
    assert sum(fault.kind is FaultKind.KILL for fault in history.faults) == 4


async def test_jobs_of_a_killed_worker_restart_within_the_lease_plus_five_seconds(run: Scenario) -> None:
    first = await run.start_worker()
    await run.submit_all([run.workload.call("chaos_works", seconds=3.0) for _ in range(5)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=3.0) for _ in range(5)])
    await run.until_runs(5)
    await run.until_runs(5, kind=TRANSIENT)
    await run.start_worker()
    run.kill(first)
    await run.until_runs(5, attempt=2)
    await run.until_runs(5, attempt=2, kind=TRANSIENT)
    history = await run.judge()
    assert [job.state for job in history.transients] == ["succeeded"] * 5
    assert Counter(attempt.cause for attempt in history.attempts if attempt.attempt > 1)["lost"] >= 5


async def test_a_frozen_worker_changes_nothing_when_it_resumes(run: Scenario) -> None:
    frozen = await run.start_worker()
    await run.submit_all([run.workload.call("chaos_works", seconds=2.0), run.workload.call("chaos_writes")])
    await run.submit_all([run.workload.call("chaos_works", seconds=0.4) for _ in range(4)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=2.0)])
    await run.until_runs(6)
    await run.until_runs(1, kind=TRANSIENT)
    with run.frozen(frozen):
        await run.start_worker()
        await run.until_runs(1, attempt=2)
        await run.until_runs(1, attempt=2, kind=TRANSIENT)
    await run.judge()
    assert frozen.alive


async def test_a_job_that_blocks_the_loop_past_its_lease_runs_again_in_another_worker(run: Scenario) -> None:
    blocked = await run.start_worker(CPLANE_QUEUES="default:2")
    await run.submit(run.workload.call("chaos_works", seconds=5.0))
    await run.until_runs(1)
    await run.submit(run.workload.call("chaos_blocks"))
    await run.until_runs(2)
    with run.blocked(blocked):
        await run.start_worker()
        await run.until_runs(2, attempt=2)
    history = await run.judge()
    assert blocked.alive
    assert {record.attempt for record in history.records} == {2}


async def test_rolling_deploys_with_long_jobs_use_no_budget(run: Scenario) -> None:
    worker = await run.start_worker(CPLANE_DRAIN_S="0.3")
    await run.submit_all([run.workload.call("chaos_works", seconds=4.0) for _ in range(4)])
    await run.submit_transient([run.workload.call("chaos_unrecorded", seconds=4.0)])
    await run.submit_all(run.workload.mixed(10, max_s=0.2))
    await run.until_runs(4)
    await run.until_runs(1, kind=TRANSIENT)
    for _ in range(4):
        following = await run.start_worker(CPLANE_DRAIN_S="0.3")
        await run.stop(worker)
        await run.submit_all([run.workload.call("chaos_ok") for _ in range(3)])
        worker = following
    history = await run.judge()
    assert sum(attempt.cause == "release" for attempt in history.attempts) >= 4
    assert not any(record.crashes or record.interruptions for record in history.records)
    assert not any(attempt.cause == "lost" for attempt in history.attempts)
    assert [job.state for job in history.transients] == ["succeeded"]


async def test_a_poison_job_runs_alone_after_it_ended_two_workers_and_fails_after_three_more(run: Scenario) -> None:
    await run.start_worker(CPLANE_QUEUES="default:1")
    poison = await run.submit(run.workload.call("chaos_poison"))
    for _ in range(ALONE_AFTER + MAX_CRASHES):
        victim = run.workers[-1]
        async with asyncio.timeout(30):
            await victim.ended()
        await run.start_worker(CPLANE_QUEUES="default:1")
    await run.submit_all([run.workload.call("chaos_ok") for _ in range(3)])
    history = await run.judge()
    (record,) = [record for record in history.records if record.id == str(poison)]
    assert (record.state, record.error_type, record.crashes, record.attempt) == ("failed", "WorkerLost", 5, 5)
