"""Per-host limits across workers: concurrency and rate hold, and no job waits for the limit of another host."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, PerHost, State, TooManyRequests, job
from cplane.errors import QueueUnavailable
from cplane.jobs.handle import Handle
from cplane.jobs.states import MAX_INTERRUPTIONS, AttemptState
from cplane.redis.envelope import decode_envelope
from cplane.redis.limiter import Limiter, LimitRequest
from cplane.worker import Worker
from tests.workers import DEADLINE_S, Gate, kept_result, raw, running

TWO_CONCURRENT = PerHost(concurrency=2)
ONCE_A_DAY = PerHost(rate=1 / 86_400)


class Visits:
    """Jobs that run on each host now, and the maximum that ever ran concurrently."""

    def __init__(self) -> None:
        self.current: Counter[str] = Counter()
        self.maximum: Counter[str] = Counter()
        self.order: list[str] = []

    @asynccontextmanager
    async def at(self, host: str) -> AsyncGenerator[None]:
        self.current[host] += 1
        self.maximum[host] = max(self.maximum[host], self.current[host])
        try:
            yield
        finally:
            self.current[host] -= 1


visits = Visits()
gate = Gate()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "visits", Visits())
    monkeypatch.setitem(globals(), "gate", Gate())


@job(per_host=TWO_CONCURRENT)
async def per_host_visit(url: str, number: int = 0) -> int:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return number


@job(per_host=TWO_CONCURRENT, record=False)
async def per_host_transient(url: str) -> str:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return url


@job(per_host={"rate": 20})
async def per_host_rate(url: str) -> None:
    visits.order.append(url)


@job(per_host=ONCE_A_DAY)
async def per_host_daily(url: str) -> str:
    return url


@job(per_host=ONCE_A_DAY, record=False)
async def per_host_daily_transient(url: str) -> str:
    return url


@job(per_host=PerHost(concurrency=1))
async def per_host_gate(url: str) -> None:
    visits.order.append(url)
    await gate.pass_through()


@job
async def per_host_unlimited(url: str) -> str:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return url


@job(per_host=PerHost())
async def per_host_rate_limited(ctx: Context, url: str, times: int, retry_after_s: float) -> int:
    if ctx.attempt <= times:
        raise TooManyRequests(retry_after_s=retry_after_s)
    return ctx.attempt


@job(per_host=PerHost())
async def per_host_cools_down(ctx: Context, url: str) -> bool:
    return await ctx.cool_down(600)


@asynccontextmanager
async def workers(settings: CplaneSettings, count: int, *, slots: int = 10) -> AsyncGenerator[list[Worker]]:
    settings = settings.model_copy(update={"queues": {"default": slots}})
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(settings)) for _ in range(count)]


async def waiters_of(plane: ControlPlane, host: str) -> int:
    return sum(stats.waiting for stats in await plane.limiter_stats() if stats.host == host)


async def results(handles: list[Handle[int]] | list[Handle[str]] | list[Handle[None]]) -> list[object]:
    return [await handle.result(timeout=DEADLINE_S) for handle in handles]


async def test_four_workers_never_exceed_the_concurrency_limit_of_a_host(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    calls = [{"url": f"http://{'abc'[number % 3]}.test/", "number": number} for number in range(90)]
    async with workers(settings, 4):
        handles = await per_host_visit.submit_many(calls)
        assert await results(handles) == list(range(90))
    assert dict(visits.maximum) == {"http://a.test/": 2, "http://b.test/": 2, "http://c.test/": 2}
    assert await plane.limiter_stats() == []
    records = await plane.records(limit=100)
    assert {(record.attempt, record.failures, record.interruptions) for record in records} == {(1, 0, 0)}
    assert {tuple(record.limit_keys or ()) for record in records} == {("a.test",), ("b.test",), ("c.test",)}


async def test_transient_jobs_are_limited_per_host_too(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 2):
        handles = await per_host_transient.submit_many([{"url": "http://a.test/"} for _ in range(30)])
        assert await results(handles) == ["http://a.test/"] * 30
    assert visits.maximum["http://a.test/"] == 2


async def test_settings_limit_jobs_without_a_per_host_option(settings: CplaneSettings) -> None:
    settings = settings.model_copy(update={"per_host_concurrency": 1})
    async with ControlPlane(settings), workers(settings, 2):
        await results(await per_host_unlimited.submit_many([{"url": "http://a.test/"} for _ in range(20)]))
    assert visits.maximum["http://a.test/"] == 1


async def test_a_rate_limit_holds_across_workers_by_the_clock_of_redis(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    began_ms = await plane.queue.now_ms()
    async with workers(settings, 3):
        await results(await per_host_rate.submit_many([{"url": "http://a.test/"} for _ in range(41)]))
        took_ms = await plane.queue.now_ms() - began_ms
    assert took_ms >= 40 * 50
    assert float(await raw(plane).hget("cplane:host:a.test", "tat")) >= began_ms + 41 * 50


async def test_many_jobs_of_one_slow_host_do_not_block_other_hosts(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    slow = await per_host_daily.submit_many([{"url": "http://slow.test/"} for _ in range(300)])
    others = await per_host_daily.submit_many([{"url": f"http://{number}.test/"} for number in range(20)])
    async with workers(settings, 1, slots=2):
        await results(others)
        async with asyncio.timeout(DEADLINE_S):
            while await waiters_of(plane, "slow.test") < 299:
                await asyncio.sleep(0.01)
    records = [await plane.record(handle.id) for handle in slow]
    waiting = [record for record in records if record.state is State.QUEUED]
    assert len(waiting) == 299
    assert {(record.attempt, record.lease_token) for record in waiting} == {(0, None)}
    assert await plane.attempts(waiting[0].id) == []


async def test_waiters_start_in_order_as_soon_as_a_slot_is_free(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 2):
        handles: list[Handle[None]] = []
        for number in range(6):
            handles.append(await per_host_gate.submit(f"http://a.test/{number}"))
            now_ms = await plane.queue.now_ms()
            while await plane.queue.now_ms() == now_ms:  # no two jobs are due in the same millisecond
                pass
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            while await waiters_of(plane, "a.test") < 5:
                await asyncio.sleep(0.01)
        gate.open.set()
        await results(handles)
    assert visits.order == [f"http://a.test/{number}" for number in range(6)]


async def test_a_job_with_another_queue_a_key_and_a_priority_is_limited_too(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    settings = settings.model_copy(update={"queues": {"default": 2, "other": 2}})
    first = await per_host_daily.submit("http://a.test/")
    async with running(settings.model_copy(update={"queues": {"default": 2}})):
        await first.result(timeout=DEADLINE_S)
    call = per_host_daily.using(queue="other", key="k", priority="high")
    second = await call.submit("http://a.test/")
    assert (await call.submit("http://a.test/")).id == second.id
    worker = Worker(settings=settings, handle_signals=False)
    task = asyncio.create_task(worker.async_run())
    async with asyncio.timeout(DEADLINE_S):
        while await waiters_of(plane, "a.test") < 1:
            await asyncio.sleep(0.01)
    worker.stop()
    await task
    assert await plane.state(second.id) is State.QUEUED


async def test_a_host_that_rate_limits_a_job_cools_down_and_no_retry_is_used(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 2):
        busy = await per_host_rate_limited.submit("http://a.test/", times=1, retry_after_s=0.3)
        assert await busy.result(timeout=DEADLINE_S) == 2
        record = await plane.record(busy.id)
        assert (record.failures, record.crashes, record.interruptions) == (0, 0, 1)
        first, second = await plane.attempts(busy.id)
        assert (first.state, first.error_type) == (AttemptState.INTERRUPTED, "TooManyRequests")
        assert second.state is AttemptState.SUCCEEDED

        await per_host_rate_limited.submit("http://b.test/", times=1, retry_after_s=7200)
        async with asyncio.timeout(DEADLINE_S):
            while not [stats for stats in await plane.limiter_stats() if stats.cooldown_s > 3500]:
                await asyncio.sleep(0.01)
        blocked_job = await per_host_rate_limited.submit("http://b.test/", times=0, retry_after_s=0)
        other = await per_host_rate_limited.submit("http://c.test/", times=0, retry_after_s=0)
        assert await other.result(timeout=DEADLINE_S) == 1
        async with asyncio.timeout(DEADLINE_S):
            while not await waiters_of(plane, "b.test"):
                await asyncio.sleep(0.01)
        assert await plane.attempts(blocked_job.id) == []


async def test_a_job_fails_after_the_maximum_number_of_rate_limit_interruptions(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 1):
        handle = await per_host_rate_limited.submit("http://a.test/", times=1000, retry_after_s=0)
        with pytest.raises(JobFailed, match="TooManyRequests"):
            await handle.result(timeout=DEADLINE_S)
    record = await plane.record(handle.id)
    assert (record.attempt, record.failures) == (MAX_INTERRUPTIONS + 1, 0)


async def test_a_job_can_cool_down_its_host_and_succeed(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 1):
        handle = await per_host_cools_down.submit("http://a.test/")
        assert await handle.result(timeout=DEADLINE_S) is True
        without_host = await per_host_cools_down.submit("no url")
        assert await without_host.result(timeout=DEADLINE_S) is False
    (stats,) = await plane.limiter_stats()
    assert stats.cooldown_s == pytest.approx(600, abs=DEADLINE_S)


async def test_per_host_jobs_all_finish_after_redis_is_wiped(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 2):
        handles = await per_host_visit.submit_many([{"url": "http://a.test/", "number": n} for n in range(100)])
        await handles[10].result(timeout=DEADLINE_S)
        await raw(plane).flushdb()
        assert await results(handles) == list(range(100))


async def test_a_rescheduled_job_keeps_its_limit_keys(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await per_host_daily.submit("http://a.test/")
    await handle.cancel()
    await raw(plane).flushdb()
    await plane.retry(handle.id)
    payload = (await plane.queue.read_job(str(handle.id))).payload
    assert payload is not None
    assert decode_envelope(payload).limit_keys == ("a.test",)
    await raw(plane).flushdb()
    async with workers(settings, 1):
        assert await handle.result(timeout=DEADLINE_S) == "http://a.test/"
        second = await per_host_daily.submit("http://a.test/")
        async with asyncio.timeout(DEADLINE_S):
            while not await waiters_of(plane, "a.test"):
                await asyncio.sleep(0.01)
    assert await plane.state(second.id) is State.QUEUED


async def test_jobs_without_limit_keys_run_while_the_limiter_is_unavailable(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"lease_s": 2.0})
    unavailable, attempted = True, asyncio.Event()
    acquire = Limiter.acquire

    async def acquire_if_available(self: Limiter, queue: str, requests: Sequence[LimitRequest]) -> list[int]:
        attempted.set()
        if unavailable:
            raise QueueUnavailable("Redis refused")
        return await acquire(self, queue, requests)

    monkeypatch.setattr(Limiter, "acquire", acquire_if_available)
    async with workers(settings, 1):
        limited = await per_host_visit.submit("http://a.test/", 7)
        free = await per_host_unlimited.submit("http://a.test/")
        await asyncio.wait_for(attempted.wait(), DEADLINE_S)
        await free.result(timeout=DEADLINE_S)
        assert (await plane.record(limited.id)).attempt == 0
        unavailable = False
        assert await limited.result(timeout=DEADLINE_S) == 7


async def test_a_waiting_job_is_cancelled_immediately(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 1):
        await (await per_host_daily.submit("http://a.test/")).result(timeout=DEADLINE_S)
        record, transient = (
            await per_host_daily.submit("http://a.test/"),
            await per_host_daily_transient.submit("http://a.test/"),
        )
        async with asyncio.timeout(DEADLINE_S):
            while await waiters_of(plane, "a.test") < 2:
                await asyncio.sleep(0.01)
        assert await record.cancel() is State.CANCELLED
        assert await transient.cancel() is State.CANCELLED
        await kept_result(plane, str(transient.id))
