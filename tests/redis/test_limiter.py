"""The limiter on real Redis: slots, rates, order and cooldowns, also when workers die or Redis loses its data."""

import asyncio
from collections.abc import Sequence

import pytest

from cplane import ControlPlane
from cplane.jobs.per_host import PerHost
from cplane.jobs.states import Priority
from cplane.redis.envelope import encode_envelope
from cplane.redis.limiter import GRANTED, LEASE_GONE, LimitRequest
from cplane.redis.messages import Ack, Disposition, EnqueueRequest, Lease, Renewal
from tests.workers import raw

LEASE_S = 30.0
TWO = PerHost(concurrency=2)
SLOW = PerHost(rate=0.5)
UNLIMITED = PerHost()


async def enqueue(plane: ControlPlane, *ids: str, queue: str = "default", priority: Priority = Priority.NORMAL) -> None:
    await plane.queue.enqueue([EnqueueRequest(queue, id_, b"payload", 0, priority) for id_ in ids])


async def claim(plane: ControlPlane, capacity: int = 100, queue: str = "default") -> list[Lease]:
    return (await plane.queue.claim(queue, capacity, LEASE_S)).leases


async def next_due(plane: ControlPlane) -> Lease:
    """Return the lease of the waiter that was made ready: it is due within a millisecond."""
    async with asyncio.timeout(10):
        while not (leases := await claim(plane)):
            await asyncio.sleep(0.001)
    (lease,) = leases
    return lease


async def acquire(plane: ControlPlane, leases: Sequence[Lease], limits: PerHost, host: str = "a.test") -> list[int]:
    return (
        await plane.limiter.acquire(
            leases[0].queue, [LimitRequest(lease, tuple(host.split()), limits) for lease in leases]
        )
        if leases
        else []
    )


def with_slot(lease: Lease, host: str = "a.test") -> Lease:
    """Return a lease that holds a slot of the host."""
    return Lease(
        lease.queue,
        lease.priority,
        lease.id,
        lease.payload,
        lease.tries,
        lease.due,
        lease.token,
        limit_keys=tuple(host.split()),
    )


async def finish(plane: ControlPlane, lease: Lease, host: str = "a.test") -> None:
    await plane.queue.ack([Ack(with_slot(lease, host), Disposition.DONE)])


async def due_ms(plane: ControlPlane, id_: str, queue: str = "default") -> int:
    """Return in how many ms an id is due."""
    due = await plane.queue.due_ms(queue, id_)
    assert due is not None
    return due - await plane.queue.now_ms()


async def test_jobs_beyond_the_concurrency_of_a_host_are_requeued_without_a_lease(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b", "c", "d")
    results = await acquire(plane, await claim(plane), TWO)
    assert results[:2] == [GRANTED, GRANTED]
    assert all(result > 10_000 for result in results[2:])
    assert await claim(plane) == []
    keys = await plane.queue.read_job("c")
    assert (keys.leased, keys.tries, keys.payload) == (False, 0, b"payload")
    (stats,) = await plane.limiter_stats()
    assert (stats.host, stats.in_use, stats.concurrency, stats.waiting) == ("a.test", 2, 2, 2)


async def test_the_next_waiter_is_ready_as_soon_as_a_slot_is_released_and_in_order(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b", "c", "d")
    first = await claim(plane)
    await acquire(plane, first, TWO)
    await finish(plane, first[1])
    (next_,) = await claim(plane)
    assert next_.id == "c"
    assert await acquire(plane, [next_], TWO) == [GRANTED]
    await finish(plane, first[0])
    (next_,) = await claim(plane)
    assert next_.id == "d"


async def test_a_new_job_does_not_overtake_the_waiters(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b", "c")
    first = await claim(plane)
    one = PerHost(concurrency=1)
    await acquire(plane, first, one)
    await finish(plane, first[0])
    await enqueue(plane, "new")
    # b was made ready, but the new job happens to be claimed by another worker first
    claimed = {lease.id: lease for lease in await claim(plane)}
    assert set(claimed) == {"b", "new"}
    assert (await acquire(plane, [claimed["new"]], one))[0] > 0
    assert await acquire(plane, [claimed["b"]], one) == [GRANTED]
    await finish(plane, claimed["b"])
    assert [lease.id for lease in await claim(plane)] == ["c"]


async def test_starts_keep_the_rate_and_each_waiter_is_due_when_the_rate_allows_its_start(plane: ControlPlane) -> None:
    await enqueue(plane, *(f"{number}" for number in range(5)))
    results = await acquire(plane, await claim(plane), SLOW)
    assert results[0] == GRANTED
    waits = results[1:]
    assert waits == pytest.approx([2000, 4000, 6000, 8000], abs=2)
    (stats,) = await plane.limiter_stats()
    assert (stats.rate, stats.waiting) == (0.5, 4)


async def test_a_burst_starts_immediately_and_the_rate_applies_after_it(plane: ControlPlane) -> None:
    await enqueue(plane, *(f"{number}" for number in range(5)))
    results = await acquire(plane, await claim(plane), PerHost(rate=0.5, burst=3))
    assert results[:3] == [GRANTED] * 3
    assert results[3:] == pytest.approx([2000, 4000], abs=2)


async def test_hosts_share_no_limits(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b")
    a, b = await claim(plane)
    one = PerHost(concurrency=1, rate=0.001)
    assert await acquire(plane, [a], one, "a.test") == [GRANTED]
    assert await acquire(plane, [b], one, "b.test") == [GRANTED]


async def test_a_slot_is_renewed_with_the_lease_and_ends_with_it(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "a", "b", "c")
    (a,) = (await plane.queue.claim("default", 1, 1.0)).leases
    assert await acquire(plane, [a], one) == [GRANTED]
    (b,) = await claim(plane, 1)
    assert (await acquire(plane, [b], one))[0] > 0
    assert await plane.queue.renew([with_slot(a)], LEASE_S) == [Renewal.RENEWED]
    ends_ms = await raw(plane).zscore("cplane:host:a.test:slots", f"a {a.token}")
    assert ends_ms - await plane.queue.now_ms() > 20_000
    # the lease expires: the slot is free, and the next request makes the first waiter ready
    await raw(plane).zadd("cplane:host:a.test:slots", {f"a {a.token}": 1})
    await enqueue(plane, "d")
    c, d = await claim(plane, 2)
    assert all(result > 0 for result in await acquire(plane, [c, d], one))
    assert await due_ms(plane, "b") <= 1  # now, in whole milliseconds


async def test_a_request_without_its_lease_fails_and_holds_no_slot(plane: ControlPlane) -> None:
    await enqueue(plane, "a")
    (a,) = await claim(plane)
    stranger = Lease(a.queue, a.priority, a.id, a.payload, 1, a.due, "other")
    assert await acquire(plane, [stranger], TWO) == [LEASE_GONE]
    assert await raw(plane).exists("cplane:host:a.test:slots") == 0


async def test_a_job_whose_worker_died_precedes_jobs_that_have_never_started(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "a", "b")
    a, b = await claim(plane)
    await acquire(plane, [a, b], one)
    now_ms = await plane.queue.now_ms()
    await raw(plane).delete("arq:in-progress:a")
    await raw(plane).zadd("arq:queue", {"a": now_ms - 10 + 0.5})
    await raw(plane).delete("cplane:host:a.test:slots")
    (a,) = await claim(plane)
    assert await acquire(plane, [a], one) == [GRANTED]


async def test_during_a_cooldown_no_job_starts_and_after_it_all_may(plane: ControlPlane) -> None:
    assert await plane.limiter.cool_down("a.test", 60) == 60
    assert await plane.limiter.cool_down("a.test", 1) == pytest.approx(60, abs=1)
    await enqueue(plane, "a", "b")
    waits = await acquire(plane, await claim(plane), PerHost())
    assert all(59_000 < wait < 60_200 for wait in waits)
    (stats,) = await plane.limiter_stats()
    assert stats.cooldown_s > 59
    await raw(plane).hset("cplane:host:a.test", "cooldown_until", 1)
    await raw(plane).zadd("arq:queue", {"a": 1, "b": 2})
    assert await acquire(plane, await claim(plane), PerHost()) == [GRANTED, GRANTED]


async def test_a_cooldown_lasts_an_hour_at_most(plane: ControlPlane) -> None:
    assert await plane.limiter.cool_down("a.test", 1e9) == 3600


async def test_a_redis_that_was_wiped_limits_from_zero_and_holds_up_no_job(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1, rate=0.001)
    await enqueue(plane, "a", "b")
    await acquire(plane, await claim(plane), one)
    await plane.limiter.cool_down("a.test", 600)
    await raw(plane).flushdb()
    await enqueue(plane, "b")
    assert await acquire(plane, await claim(plane), one) == [GRANTED]


async def test_a_waiter_that_left_the_queue_or_is_never_claimed_holds_up_no_other(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "running", "cancelled", "last")
    await enqueue(plane, "unserved", queue="elsewhere")
    first, cancelled, last = await claim(plane)
    await acquire(plane, [first], one)
    await acquire(plane, await claim(plane, queue="elsewhere"), one)
    await acquire(plane, [cancelled, last], one)
    await raw(plane).zrem("arq:queue", "cancelled")
    await raw(plane).zadd("arq:queue:elsewhere", {"unserved": await plane.queue.now_ms() - 10_000})
    await finish(plane, first)
    (lease,) = await claim(plane)
    assert lease.id == "last"
    assert await acquire(plane, [lease], one) == [GRANTED]


async def test_waiters_that_are_never_claimed_move_to_the_end_of_the_wait_queue(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "running")
    (first,) = await claim(plane)
    await acquire(plane, [first], one)
    left = [f"left{number}" for number in range(40)]
    await enqueue(plane, *left, queue="elsewhere")
    await acquire(plane, await claim(plane, queue="elsewhere"), one)
    await enqueue(plane, "last")
    await acquire(plane, await claim(plane), one)
    assert await due_ms(plane, "last") > 10_000
    await raw(plane).zadd("arq:queue:elsewhere", dict.fromkeys(left, await plane.queue.now_ms() - 100_000))
    await finish(plane, first)
    assert await due_ms(plane, "last") <= 0
    assert await raw(plane).zrank("cplane:host:a.test:waiters", "arq:queue last") == 0
    (waits,) = [lease for lease in await claim(plane, queue="elsewhere") if lease.id == "left0"]
    assert (await acquire(plane, [waits], one))[0] > 0


async def test_a_released_slot_makes_a_job_of_another_queue_ready_and_wakes_its_worker(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "here")
    (here,) = await claim(plane)
    await acquire(plane, [here], one)
    await enqueue(plane, "there", queue="elsewhere", priority=Priority.LOW)
    await acquire(plane, await claim(plane, queue="elsewhere"), one)
    await raw(plane).delete("cplane:wake:elsewhere")
    await finish(plane, here)
    assert await raw(plane).llen("cplane:wake:elsewhere") == 1
    (there,) = await claim(plane, queue="elsewhere")
    assert await acquire(plane, [there], one) == [GRANTED]


async def test_a_job_that_is_enqueued_again_stays_in_the_wait_queue(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b")
    await acquire(plane, await claim(plane), PerHost(rate=0.001))
    before = await due_ms(plane, "b")
    assert before > 900_000
    again = EnqueueRequest("default", "b", b"payload", 0, late_ms=30_000, limit_keys=("a.test",))
    await plane.queue.enqueue([again])
    assert await due_ms(plane, "b") == pytest.approx(before, abs=2000)
    await raw(plane).delete("cplane:host:a.test:waiters")
    await plane.queue.enqueue([again])
    assert await due_ms(plane, "b") <= 0


async def test_only_similar_jobs_behind_a_waiter_join_the_wait_queue_with_it(plane: ControlPlane) -> None:
    def of(host: str | None, job: str = "f") -> bytes:
        return encode_envelope(job, (), {"host": "a.test"}, limit_keys=() if host is None else tuple(host.split()))

    mine = [f"m{number:03}" for number in range(200)]
    payloads = {id_: of("a.test") for id_ in ("a", "b", *mine)}
    payloads |= {"z0": of("b.test"), "z1": of(None), "z2": of("a.test", "g"), "z3": b"not an envelope"}
    await plane.queue.enqueue([EnqueueRequest("default", id_, payload) for id_, payload in payloads.items()])
    await raw(plane).zadd("arq:queue", {id_: 1000 + number for number, id_ in enumerate(payloads)})
    first = await claim(plane, 2)
    assert [lease.id for lease in first] == ["a", "b"]
    results = await acquire(plane, first, PerHost(rate=0.5))
    assert results == [GRANTED, pytest.approx(2000, abs=2)]
    assert [lease.id for lease in await claim(plane)] == ["z0", "z1", "z2", "z3"]
    assert await due_ms(plane, "m000") == pytest.approx(4000, abs=1500)
    assert await due_ms(plane, "m199") == pytest.approx(402_000, abs=1500)
    assert (await plane.limiter_stats())[0].waiting == 201


async def test_a_session_runs_one_job_at_a_time_and_the_next_is_ready_immediately(plane: ControlPlane) -> None:
    await enqueue(plane, "a", "b", "c")
    first = await claim(plane)
    results = await acquire(plane, first, UNLIMITED, "@main")
    assert results[0] == GRANTED
    assert all(result > 10_000 for result in results[1:])
    assert await claim(plane) == []
    holder = first[0]
    assert await plane.queue.renew([with_slot(holder, "@main")], LEASE_S) == [Renewal.RENEWED]
    (stats,) = await plane.limiter_stats()
    assert (stats.host, stats.in_use, stats.concurrency, stats.waiting) == ("@main", 1, 1, 2)
    for expected in ("b", "c"):
        await finish(plane, holder, "@main")
        (holder,) = await claim(plane)
        assert holder.id == expected
        assert await acquire(plane, [holder], UNLIMITED, "@main") == [GRANTED]


async def test_a_job_that_needs_a_session_and_a_host_acquires_both_or_neither(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    await enqueue(plane, "1 on the host", "2 in the session", "3 needs both", "4 in the session after it")
    host, session, both, after = await claim(plane)
    assert await acquire(plane, [host], one) == [GRANTED]
    assert await acquire(plane, [session], UNLIMITED, "@main") == [GRANTED]
    assert (await acquire(plane, [both], one, "@main a.test"))[0] > 0
    assert (await acquire(plane, [after], UNLIMITED, "@main"))[0] > 0
    await finish(plane, session, "@main")
    (both,) = await claim(plane)
    assert both.id == "3 needs both"
    (wait_ms,) = await acquire(
        plane, [both], one, "@main a.test"
    )  # the host has no free slot: the session is not reserved for it
    assert wait_ms > 0
    after = await next_due(plane)
    assert after.id == "4 in the session after it"
    assert await acquire(plane, [after], UNLIMITED, "@main") == [GRANTED]
    await finish(plane, host)
    (both,) = await claim(plane)
    assert (await acquire(plane, [both], one, "@main a.test"))[0] > 0  # now the session has no free slot
    assert await claim(plane) == []
    await finish(plane, after, "@main")
    (both,) = await claim(plane)
    assert await acquire(plane, [both], one, "@main a.test") == [GRANTED]
    assert {stats.host: stats.in_use for stats in await plane.limiter_stats()} == {"@main": 1, "a.test": 1}
    await finish(plane, both, "@main a.test")
    assert await plane.limiter_stats() == []


async def test_keys_of_another_type_are_replaced(plane: ControlPlane) -> None:
    one = PerHost(concurrency=1)
    keys = ["cplane:hosts", *(f"cplane:host:a.test{part}" for part in ("", ":slots", ":waiters"))]

    async def overwrite() -> None:
        for key in keys:
            await raw(plane).set(key, "another type")

    await overwrite()
    await enqueue(plane, "a", "b")
    a, b = await claim(plane)
    assert await acquire(plane, [a], one) == [GRANTED]
    assert (await acquire(plane, [b], one))[0] > 0
    await overwrite()
    await plane.queue.enqueue([EnqueueRequest("default", "b", b"payload", 0, late_ms=0, limit_keys=("a.test",))])
    assert await plane.queue.renew([with_slot(a)], LEASE_S) == [Renewal.RENEWED]
    await finish(plane, a)
    await overwrite()
    assert await plane.limiter.cool_down("a.test", 60) == 60


async def test_a_thousand_waiters_are_each_claimed_about_twice(plane: ControlPlane) -> None:
    """Each is claimed once and requeued, and claimed again when it may start."""
    one = PerHost(concurrency=1)
    await enqueue(plane, *(f"{number:04}" for number in range(1000)))
    claims, order = 0, list[str]()
    while leases := await claim(plane, 50):
        claims += len(leases)
        running = [
            lease for lease, result in zip(leases, await acquire(plane, leases, one), strict=True) if result == GRANTED
        ]
        for lease in running:
            order.append(lease.id)
            await finish(plane, lease)
    assert order == sorted(order)
    assert len(order) == 1000
    assert claims <= 2100


async def test_keys_of_a_host_without_waiters_expire(plane: ControlPlane) -> None:
    await enqueue(plane, "a")
    (a,) = await claim(plane)
    await acquire(plane, [a], PerHost(concurrency=1, rate=10))
    await finish(plane, a)
    keys = [key.decode() for key in await raw(plane).keys("cplane:host*")]
    assert keys == ["cplane:host:a.test"]
    assert 0 < await raw(plane).pttl("cplane:host:a.test") < 70_000
    assert await plane.limiter_stats() == []
