"""Workers that share hosts: never more at once and never faster than they may, and nobody waits for another's host."""

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

TWO = PerHost(concurrency=2)
ONCE_A_DAY = PerHost(rate=1 / 86_400)


class Visits:
    """Who is on which host, and the most that ever were at once."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []

    @asynccontextmanager
    async def at(self, host: str) -> AsyncGenerator[None]:
        self.now[host] += 1
        self.most[host] = max(self.most[host], self.now[host])
        try:
            yield
        finally:
            self.now[host] -= 1


visits = Visits()
gate = Gate()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "visits", Visits())
    monkeypatch.setitem(globals(), "gate", Gate())


@job(per_host=TWO)
async def polite_visit(url: str, number: int = 0) -> int:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return number


@job(per_host=TWO, record=False)
async def polite_transient(url: str) -> str:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return url


@job(per_host={"rate": 20})
async def polite_rate(url: str) -> None:
    visits.order.append(url)


@job(per_host=ONCE_A_DAY)
async def polite_daily(url: str) -> str:
    return url


@job(per_host=ONCE_A_DAY, record=False)
async def polite_daily_transient(url: str) -> str:
    return url


@job(per_host=PerHost(concurrency=1))
async def polite_gate(url: str) -> None:
    visits.order.append(url)
    await gate.pass_through()


@job
async def polite_plain(url: str) -> str:
    async with visits.at(url):
        await asyncio.sleep(0.005)
    return url


@job(per_host=PerHost())
async def polite_busy(ctx: Context, url: str, times: int, retry_after_s: float) -> int:
    if ctx.attempt <= times:
        raise TooManyRequests(retry_after_s=retry_after_s)
    return ctx.attempt


@job(per_host=PerHost())
async def polite_cools(ctx: Context, url: str) -> bool:
    return await ctx.cool_down(600)


@asynccontextmanager
async def workers(settings: CplaneSettings, count: int, *, room: int = 10) -> AsyncGenerator[list[Worker]]:
    settings = settings.model_copy(update={"queues": {"default": room}})
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(settings)) for _ in range(count)]


async def waiting_for(plane: ControlPlane, host: str) -> int:
    return sum(stand.waiting for stand in await plane.limiter_stats() if stand.host == host)


async def results(handles: list[Handle[int]] | list[Handle[str]] | list[Handle[None]]) -> list[object]:
    return [await handle.result(timeout=DEADLINE_S) for handle in handles]


async def test_four_workers_never_have_more_jobs_on_a_host_than_may_be(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    calls = [{"url": f"http://{'abc'[number % 3]}.test/", "number": number} for number in range(90)]
    async with workers(settings, 4):
        handles = await polite_visit.submit_many(calls)
        assert await results(handles) == list(range(90))
    assert dict(visits.most) == {"http://a.test/": 2, "http://b.test/": 2, "http://c.test/": 2}
    assert await plane.limiter_stats() == []
    records = await plane.records(limit=100)
    assert {(record.attempt, record.failures, record.interruptions) for record in records} == {(1, 0, 0)}
    assert {tuple(record.limit_keys or ()) for record in records} == {("a.test",), ("b.test",), ("c.test",)}


async def test_transient_jobs_are_limited_as_well(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 2):
        handles = await polite_transient.submit_many([{"url": "http://a.test/"} for _ in range(30)])
        assert await results(handles) == ["http://a.test/"] * 30
    assert visits.most["http://a.test/"] == 2


async def test_settings_limit_jobs_that_say_nothing(settings: CplaneSettings) -> None:
    settings = settings.model_copy(update={"per_host_concurrency": 1})
    async with ControlPlane(settings), workers(settings, 2):
        await results(await polite_plain.submit_many([{"url": "http://a.test/"} for _ in range(20)]))
    assert visits.most["http://a.test/"] == 1


async def test_a_rate_holds_over_all_workers_by_the_clock_of_redis(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    began_ms = await plane.queue.now_ms()
    async with workers(settings, 3):
        await results(await polite_rate.submit_many([{"url": "http://a.test/"} for _ in range(41)]))
        took_ms = await plane.queue.now_ms() - began_ms
    assert took_ms >= 40 * 50
    assert float(await raw(plane).hget("cplane:host:a.test", "tat")) >= began_ms + 41 * 50


async def test_a_queue_full_of_one_slow_host_holds_up_no_other(settings: CplaneSettings, plane: ControlPlane) -> None:
    slow = await polite_daily.submit_many([{"url": "http://slow.test/"} for _ in range(300)])
    others = await polite_daily.submit_many([{"url": f"http://{number}.test/"} for number in range(20)])
    async with workers(settings, 1, room=2):
        await results(others)
        async with asyncio.timeout(DEADLINE_S):
            while await waiting_for(plane, "slow.test") < 299:
                await asyncio.sleep(0.01)
    records = [await plane.record(handle.id) for handle in slow]
    waiting = [record for record in records if record.state is State.QUEUED]
    assert len(waiting) == 299
    assert {(record.attempt, record.lease_token) for record in waiting} == {(0, None)}
    assert await plane.attempts(waiting[0].id) == []


async def test_who_waits_starts_as_soon_as_a_place_is_free_and_in_order(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 2):
        handles: list[Handle[None]] = []
        for number in range(6):
            handles.append(await polite_gate.submit(f"http://a.test/{number}"))
            now_ms = await plane.queue.now_ms()
            while await plane.queue.now_ms() == now_ms:  # no two are due in the same millisecond
                pass
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            while await waiting_for(plane, "a.test") < 5:
                await asyncio.sleep(0.01)
        gate.open.set()
        await results(handles)
    assert visits.order == [f"http://a.test/{number}" for number in range(6)]


async def test_a_job_of_a_queue_a_key_and_a_delay_of_its_own_is_limited_too(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    settings = settings.model_copy(update={"queues": {"default": 2, "other": 2}})
    first = await polite_daily.submit("http://a.test/")
    async with running(settings.model_copy(update={"queues": {"default": 2}})):
        await first.result(timeout=DEADLINE_S)
    call = polite_daily.using(queue="other", key="k", priority="high")
    second = await call.submit("http://a.test/")
    assert (await call.submit("http://a.test/")).id == second.id
    worker = Worker(settings=settings, handle_signals=False)
    task = asyncio.create_task(worker.async_run())
    async with asyncio.timeout(DEADLINE_S):
        while await waiting_for(plane, "a.test") < 1:
            await asyncio.sleep(0.01)
    worker.stop()
    await task
    assert await plane.state(second.id) is State.QUEUED


async def test_a_host_that_has_had_enough_is_left_alone_and_no_retry_is_spent(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 2):
        busy = await polite_busy.submit("http://a.test/", times=1, retry_after_s=0.3)
        assert await busy.result(timeout=DEADLINE_S) == 2
        record = await plane.record(busy.id)
        assert (record.failures, record.crashes, record.interruptions) == (0, 0, 1)
        first, second = await plane.attempts(busy.id)
        assert (first.state, first.error_type) == (AttemptState.INTERRUPTED, "TooManyRequests")
        assert second.state is AttemptState.SUCCEEDED

        await polite_busy.submit("http://b.test/", times=1, retry_after_s=7200)
        async with asyncio.timeout(DEADLINE_S):
            while not [stand for stand in await plane.limiter_stats() if stand.cooldown_s > 3500]:
                await asyncio.sleep(0.01)
        held_up = await polite_busy.submit("http://b.test/", times=0, retry_after_s=0)
        other = await polite_busy.submit("http://c.test/", times=0, retry_after_s=0)
        assert await other.result(timeout=DEADLINE_S) == 1
        async with asyncio.timeout(DEADLINE_S):
            while not await waiting_for(plane, "b.test"):
                await asyncio.sleep(0.01)
        assert await plane.attempts(held_up.id) == []


async def test_a_host_that_never_has_time_fails_the_job_in_the_end(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 1):
        handle = await polite_busy.submit("http://a.test/", times=1000, retry_after_s=0)
        with pytest.raises(JobFailed, match="TooManyRequests"):
            await handle.result(timeout=DEADLINE_S)
    record = await plane.record(handle.id)
    assert (record.attempt, record.failures) == (MAX_INTERRUPTIONS + 1, 0)


async def test_a_job_can_have_its_host_left_alone_and_succeed(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 1):
        handle = await polite_cools.submit("http://a.test/")
        assert await handle.result(timeout=DEADLINE_S) is True
        without = await polite_cools.submit("no url")
        assert await without.result(timeout=DEADLINE_S) is False
    (stand,) = await plane.limiter_stats()
    assert stand.cooldown_s == pytest.approx(600, abs=DEADLINE_S)


async def test_a_redis_that_was_wiped_gets_the_hosts_back_and_every_job_ends(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with workers(settings, 2):
        handles = await polite_visit.submit_many([{"url": "http://a.test/", "number": n} for n in range(100)])
        await handles[10].result(timeout=DEADLINE_S)
        await raw(plane).flushdb()
        assert await results(handles) == list(range(100))


async def test_what_is_scheduled_again_carries_its_host(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await polite_daily.submit("http://a.test/")
    await handle.cancel()
    await raw(plane).flushdb()
    await plane.retry(handle.id)
    payload = (await plane.queue.look(str(handle.id))).payload
    assert payload is not None
    assert decode_envelope(payload).limit_keys == ("a.test",)
    await raw(plane).flushdb()
    async with workers(settings, 1):
        assert await handle.result(timeout=DEADLINE_S) == "http://a.test/"
        second = await polite_daily.submit("http://a.test/")
        async with asyncio.timeout(DEADLINE_S):
            while not await waiting_for(plane, "a.test"):
                await asyncio.sleep(0.01)
    assert await plane.state(second.id) is State.QUEUED


async def test_while_hosts_cannot_be_asked_the_jobs_that_have_none_go_on(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"lease_s": 2.0})
    broken, asked = True, asyncio.Event()
    ask = Limiter.acquire

    async def maybe_ask(self: Limiter, queue: str, asks: Sequence[LimitRequest]) -> list[int]:
        asked.set()
        if broken:
            raise QueueUnavailable("Redis refused")
        return await ask(self, queue, asks)

    monkeypatch.setattr(Limiter, "acquire", maybe_ask)
    async with workers(settings, 1):
        limited = await polite_visit.submit("http://a.test/", 7)
        free = await polite_plain.submit("http://a.test/")
        await asyncio.wait_for(asked.wait(), DEADLINE_S)
        await free.result(timeout=DEADLINE_S)
        assert (await plane.record(limited.id)).attempt == 0
        broken = False
        assert await limited.result(timeout=DEADLINE_S) == 7


async def test_a_waiting_job_that_is_cancelled_leaves_at_once(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with workers(settings, 1):
        await (await polite_daily.submit("http://a.test/")).result(timeout=DEADLINE_S)
        record, transient = (
            await polite_daily.submit("http://a.test/"),
            await polite_daily_transient.submit("http://a.test/"),
        )
        async with asyncio.timeout(DEADLINE_S):
            while await waiting_for(plane, "a.test") < 2:
                await asyncio.sleep(0.01)
        assert await record.cancel() is State.CANCELLED
        assert await transient.cancel() is State.CANCELLED
        await kept_result(plane, str(transient.id))
