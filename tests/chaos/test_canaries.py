"""With a guard of the product switched off the suite must cry out: a suite that is silent then would be silent always."""

from tests.chaos.scenario import Scenario
from tests.chaos.worker import Plan

SHORT_S = 9.0
"""How long a run that cannot end is waited for."""


async def broken_rules(run: Scenario, deadline_s: float = 30.0) -> set[str]:
    violations, _ = await run.violations(deadline_s)
    return {violation.rule for violation in violations}


async def a_worker_overstays_its_lease(run: Scenario, plan: Plan) -> None:
    """One worker holds its loop past the lease, another takes over, and while it works the first records its outcome."""
    await run.start_worker(plan, CPLANE_QUEUES="default:1")
    await run.submit_all([run.workload.call("chaos_overstays")])
    await run.until_runs(1)
    await run.start_worker(plan, CPLANE_QUEUES="default:1")


async def test_a_store_without_its_fence_is_found(run: Scenario) -> None:
    await a_worker_overstays_its_lease(run, Plan(without=("fence",)))
    assert "one finish" in await broken_rules(run)


async def test_the_same_run_with_its_fence_breaks_no_rule(run: Scenario) -> None:
    await a_worker_overstays_its_lease(run, Plan())
    await run.judge()


async def test_a_worker_without_a_reconciler_is_found(run: Scenario) -> None:
    plan = Plan(without=("reconciler",))
    killed = await run.start_worker(plan)
    await run.submit_all([run.workload.call("chaos_works", seconds=2.0) for _ in range(3)])
    await run.until_runs(3)
    run.kill(killed)
    await run.arena.flush_redis()
    await run.start_worker(plan)
    assert "accepted is final" in await broken_rules(run, SHORT_S)


async def test_leases_that_are_not_renewed_are_found(run: Scenario) -> None:
    plan = Plan(without=("renewal",))
    await run.start_worker(plan)
    await run.start_worker(plan)
    await run.submit_all([run.workload.call("chaos_works", seconds=6.0) for _ in range(2)])
    assert {"attempts are explained", "runs alone"} <= await broken_rules(run)
