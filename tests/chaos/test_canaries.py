"""With a guard of the product switched off, the suite must report violations; otherwise it could never find any."""

from tests.chaos.scenario import Scenario
from tests.chaos.worker import Plan

STUCK_RUN_S = 9.0
"""How long to wait for a scenario that cannot end."""


async def broken_rules(run: Scenario, deadline_s: float = 30.0) -> set[str]:
    violations, _ = await run.violations(deadline_s)
    return {violation.rule for violation in violations}


async def a_worker_overstays_its_lease(run: Scenario, plan: Plan) -> None:
    """Let a worker block its loop past the lease, and record its outcome while another has taken over."""
    await run.start_worker(plan, CPLANE_QUEUES="default:1")
    await run.submit_all([run.workload.call("chaos_overstays")])
    await run.until_runs(1)
    await run.start_worker(plan, CPLANE_QUEUES="default:1")


async def test_a_store_without_fence_breaks_a_rule(run: Scenario) -> None:
    await a_worker_overstays_its_lease(run, Plan(without=("fence",)))
    assert "one finish" in await broken_rules(run)


async def test_the_same_scenario_with_fence_breaks_no_rule(run: Scenario) -> None:
    await a_worker_overstays_its_lease(run, Plan())
    await run.judge()


async def test_workers_without_reconciler_break_a_rule(run: Scenario) -> None:
    plan = Plan(without=("reconciler",))
    killed = await run.start_worker(plan)
    await run.submit_all([run.workload.call("chaos_works", seconds=2.0) for _ in range(3)])
    await run.until_runs(3)
    run.kill(killed)
    await run.arena.flush_redis()
    await run.start_worker(plan)
    assert "accepted is final" in await broken_rules(run, STUCK_RUN_S)


async def test_workers_without_renewal_break_rules(run: Scenario) -> None:
    plan = Plan(without=("renewal",))
    await run.start_worker(plan)
    await run.start_worker(plan)
    await run.submit_all([run.workload.call("chaos_works", seconds=6.0) for _ in range(2)])
    assert {"attempts are explained", "runs alone"} <= await broken_rules(run)
