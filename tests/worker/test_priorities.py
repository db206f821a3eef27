"""Priorities: a queue has three lanes, served from high to low; no lane is starved, and a job stays in its lane."""

import asyncio

import pytest

from cplane import Context, ControlPlane, CplaneSettings, RetryPolicy, job
from cplane.errors import InvalidArguments
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import Priority
from cplane.redis.keys import LANE_ORDERS, LANES, lane_order, queue_of, redis_name
from cplane.redis.messages import Ack, Claim, Disposition, EnqueueRequest
from cplane.redis.queue import Queue
from tests.workers import DEADLINE_S, Gate, raw, running

HIGH, NORMAL, LOW = LANES
RETRY_IMMEDIATELY = RetryPolicy(retries=1, backoff_s=0, jitter=0)

gate = Gate()
ran: list[str] = []


@job
async def priority_recorded(label: str) -> None:
    ran.append(label)


@job(record=False)
async def priority_transient(label: str) -> None:
    ran.append(label)


@job(priority="high")
async def priority_high() -> None: ...


@job(priority="low", record=False, retries=RetryPolicy(retries=1, backoff_s=60, jitter=0))
async def priority_low_retried(ctx: Context) -> None:
    ran.append(f"attempt {ctx.attempt}")
    raise ValueError


@job(priority="low", retries=RetryPolicy(retries=1, backoff_s=60, jitter=0))
async def priority_low_record_retried(ctx: Context) -> None:
    ran.append(f"attempt {ctx.attempt}")
    raise ValueError


@job(priority="low")
async def priority_low_gate() -> None:
    await gate.pass_through()


@job(priority="low", record=False)
async def priority_low_transient_gate() -> None:
    await gate.pass_through()


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())
    ran.clear()


async def lanes_of(plane: ControlPlane, job_id: object, queue: str = "default") -> list[Priority]:
    """Return the lanes that hold this job id."""
    return [lane for lane in LANES if await raw(plane).zscore(redis_name(queue, lane), str(job_id)) is not None]


def ids(claim: Claim) -> list[str]:
    return [lease.id for lease in claim.leases]


def enqueue_request(name: str, priority: Priority, delay_ms: int = 0) -> EnqueueRequest:
    return EnqueueRequest("default", name, b"x", delay_ms, priority)


def test_the_normal_lane_is_arqs_own_queue() -> None:
    assert [redis_name("default", lane) for lane in LANES] == ["arq:queue@high", "arq:queue", "arq:queue@low"]
    assert redis_name("browser", HIGH) == "arq:queue:browser@high"
    assert queue_of(redis_name("browser")) == "browser"


def test_no_lane_is_starved() -> None:
    served_first = [lane_order(claim)[0] for claim in range(1600)]
    assert {lane: served_first.count(lane) for lane in LANES} == {HIGH: 1200, NORMAL: 300, LOW: 100}
    longest = {lane: max(len(run) for run in runs_without(served_first, lane)) for lane in LANES}
    assert longest == {HIGH: 1, NORMAL: 7, LOW: 15}, "consecutive claims that serve another lane first"
    assert all(sorted(order) == sorted(LANES) for order in LANE_ORDERS)


def runs_without(served: list[Priority], lane: Priority) -> list[list[Priority]]:
    runs: list[list[Priority]] = [[]]
    for first in served:
        if first is lane:
            runs.append([])
        else:
            runs[-1].append(first)
    return runs


async def test_a_claim_serves_high_before_normal_before_low_regardless_of_due_time(plane: ControlPlane) -> None:
    queue = Queue(plane.redis)
    await queue.enqueue(
        [
            enqueue_request("low", LOW, -9000),
            enqueue_request("normal", NORMAL, -5000),
            enqueue_request("high", HIGH),
            enqueue_request("scheduled", HIGH, 60_000),
        ]
    )
    first = await queue.claim("default", 2, 30)
    assert [(lease.id, lease.priority) for lease in first.leases] == [("high", HIGH), ("normal", NORMAL)]
    assert first.wait_s == 0, "more jobs are ready"
    second = await queue.claim("default", 2, 30)
    assert [(lease.id, lease.priority) for lease in second.leases] == [("low", LOW)]


async def test_low_jobs_are_claimed_while_high_jobs_keep_arriving(plane: ControlPlane) -> None:
    queue = Queue(plane.redis)
    await queue.enqueue([enqueue_request("low", LOW, -1000)])
    claims = 0
    while "low" not in (claimed := ids(await queue.claim("default", 1, 30))):
        claims += 1
        assert claims < 16
        assert len(claimed) <= 1
        await queue.enqueue([enqueue_request(f"high {claims}", HIGH), enqueue_request(f"normal {claims}", NORMAL)])


@pytest.mark.parametrize("job_under_test", [priority_recorded, priority_transient], ids=["recorded", "transient"])
async def test_a_worker_runs_jobs_in_order_of_priority(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    for priority in (LOW, NORMAL, HIGH):
        await job_under_test.using(priority=priority).submit_many({"label": f"{priority} {n}"} for n in range(3))
    one_at_a_time = settings.model_copy(update={"queues": {"default": 1}})
    last = await job_under_test.using(priority="low").submit("last")
    async with running(one_at_a_time):
        await last.result(DEADLINE_S)
    # the fourth claim serves the normal lane first, so that it is not starved
    assert ran == [
        "high 0", "high 1", "high 2", "normal 0", "normal 1", "normal 2", "low 0", "low 1", "low 2", "last",
    ]  # fmt: skip


async def test_the_priority_of_a_submission_overrides_the_priority_of_the_job(plane: ControlPlane) -> None:
    default, overridden = await priority_high.submit(), await priority_high.using(priority="low", delay=60).submit()
    transient = await priority_transient.using(priority="high").submit("x")
    by_name = await plane.create_job("priority_high", {}, priority="normal")
    assert [await lanes_of(plane, handle.id) for handle in (default, overridden, transient, by_name)] == [
        [HIGH], [LOW], [HIGH], [NORMAL],
    ]  # fmt: skip
    assert (await plane.record(default.id)).priority is HIGH
    assert (await plane.record(overridden.id)).priority is LOW
    for invalid in ("urgent", "", "HIGH"):
        with pytest.raises(InvalidArguments, match="is not a priority"):
            priority_high.using(priority=invalid)
    with pytest.raises(InvalidArguments, match="'urgent' is not a priority"):
        await plane.create_job("priority_high", {}, priority="urgent")


async def test_the_same_key_with_another_priority_is_an_idempotency_conflict(plane: ControlPlane) -> None:
    from cplane.errors import IdempotencyConflict

    first = await priority_recorded.using(key="k").submit("x")
    assert (await priority_recorded.using(key="k", priority="normal").submit("x")).id == first.id
    with pytest.raises(IdempotencyConflict):
        await priority_recorded.using(key="k", priority="high").submit("x")


@pytest.mark.parametrize(
    "job_under_test", [priority_low_retried, priority_low_record_retried], ids=["transient", "recorded"]
)
async def test_a_retried_job_stays_in_its_lane(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    handle = await job_under_test.submit()
    async with running(settings), asyncio.timeout(DEADLINE_S):
        while ran != ["attempt 1"] or await raw(plane).exists(f"arq:in-progress:{handle.id}"):
            await asyncio.sleep(0.01)
    assert await lanes_of(plane, handle.id) == [LOW]


@pytest.mark.parametrize(
    "job_under_test", [priority_low_transient_gate, priority_low_gate], ids=["transient", "recorded"]
)
async def test_a_released_job_stays_in_its_lane(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    handle = await job_under_test.submit()
    async with running(settings.model_copy(update={"drain_s": 0.0})):
        await gate.entered.wait()
        assert await lanes_of(plane, handle.id) == [LOW]
    assert await lanes_of(plane, handle.id) == [LOW]
    assert ids(await plane.queue.claim("default", 1, 30)) == [str(handle.id)]


async def test_a_job_lost_from_redis_is_rescheduled_in_its_lane(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.RECONCILE_INTERVAL_S", 0.05)
    handle = await priority_low_gate.using(delay=60).submit()
    await raw(plane).flushdb()
    async with running(settings), asyncio.timeout(DEADLINE_S):
        while await lanes_of(plane, handle.id) != [LOW]:
            await asyncio.sleep(0.01)


async def test_a_replayed_job_is_queued_in_the_lane_of_its_record(plane: ControlPlane) -> None:
    handle = await priority_low_gate.submit()
    await handle.cancel()
    (lease,) = (await plane.queue.claim("default", 1, 30)).leases
    await plane.queue.ack([Ack(lease, Disposition.DONE)])
    await plane.retry(handle.id)
    assert await lanes_of(plane, handle.id) == [LOW]


async def test_delayed_jobs_stay_in_their_lane(settings: CplaneSettings, plane: ControlPlane) -> None:
    low = await priority_transient.using(priority="low", delay=0.2).submit("low")
    high = await priority_recorded.using(priority="high", delay=0.2).submit("high")
    assert await lanes_of(plane, low.id) == [LOW]
    assert await lanes_of(plane, high.id) == [HIGH]
    async with running(settings):
        await low.result(DEADLINE_S)
        await high.result(DEADLINE_S)
    assert await plane.queue.depth("default") == 0


async def test_sweep_stats_and_depth_include_every_lane(plane: ControlPlane) -> None:
    await plane.queue.enqueue([enqueue_request(lane, lane) for lane in LANES])
    await plane.queue.enqueue([enqueue_request(f"{lane} scheduled", lane, 60_000) for lane in LANES])
    for lane in LANES:
        await raw(plane).zadd(redis_name("default", lane), {f"missing {lane}": 5})
    missing = await plane.queue.sweep("default")
    assert [(entry.priority, entry.id) for entry in missing] == [(lane, f"missing {lane}") for lane in LANES]
    stats = await plane.queue.stats("default")
    assert (stats.ready, stats.scheduled, stats.running) == (3, 3, 0)
    assert await plane.queue.depth("default") == 6


async def test_a_finished_transient_job_shows_the_priority_of_its_submission(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    done = await priority_transient.using(priority="low", queue="default").submit("x")
    cancelled = [await priority_transient.using(priority="low", delay=60).submit("y") for _ in range(2)]
    await cancelled[0].cancel()
    await plane.cancel(cancelled[1].id)
    async with running(settings):
        await done.result(DEADLINE_S)
    for handle in (done, *cancelled):
        finished = await plane.job(handle.id)
        assert (finished.state.final, finished.queue, finished.priority) == (True, "default", Priority.LOW)
