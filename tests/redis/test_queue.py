"""The schedule on real Redis: replies of the scripts, the keys they leave, and compatibility with arq's client."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus
from pydantic import SecretStr
from redis.asyncio import Redis

from cplane.errors import QueueUnavailable
from cplane.jobs.states import Priority
from cplane.redis.connection import connect
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.envelope import decode_envelope, encode_envelope
from cplane.redis.keys import queue_of, redis_name
from cplane.redis.messages import (
    Ack,
    AckResult,
    Claim,
    Disposition,
    EnqueueRequest,
    EnqueueResult,
    Id,
    Lease,
    QueueStats,
    Renewal,
)
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id
from tests.workers import DEADLINE_S, blocked

LEASE_S = 30.0
WAKE = "cplane:wake:default"


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    """A client of the server, next to `Queue`; its types are too loose to be useful."""
    async with connect(SecretStr(redis_url)) as client:
        yield client


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis)


def request(id: str, delay_ms: int = 0, queue: str = "default", **options: Any) -> EnqueueRequest:  # noqa: A002
    return EnqueueRequest(queue, id, encode_envelope("f"), delay_ms, **options)


def forged(lease: Lease) -> Lease:
    """Return the same id with the lease of another claim."""
    return msgspec.structs.replace(lease, token="forged")


async def contents(redis: Any) -> dict[bytes, object]:
    """Return every key with its value."""
    held: dict[bytes, object] = {}
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        if kind == b"zset":
            held[key] = await redis.zrange(key, 0, -1, withscores=True)
        else:
            held[key] = await (redis.lrange(key, 0, -1) if kind == b"list" else redis.get(key))
    return held


async def score(redis: Any, id: str, queue: str = "arq:queue") -> float:  # noqa: A002
    return float(await redis.zscore(queue, id))


async def now_ms(redis: Any) -> float:
    seconds, microseconds = await redis.time()
    return float(seconds * 1000 + microseconds / 1000)


async def claim_one(queue: Queue, lease_s: float = LEASE_S) -> Lease:
    (lease,) = (await queue.claim("default", 1, lease_s)).leases
    return lease


def ids(claim: Claim) -> list[str]:
    return [lease.id for lease in claim.leases]


# enqueue


async def test_an_id_is_scheduled_once_and_repeating_changes_nothing(queue: Queue, redis: Any) -> None:
    batch = [request("a"), request("b", 60_000)]
    assert await queue.enqueue(batch) == [EnqueueResult.SCHEDULED] * 2
    before = await contents(redis)
    assert await queue.enqueue([*batch, request("a", 5_000), request("a", 0)]) == [EnqueueResult.ALREADY_THERE] * 4
    assert await contents(redis) == before
    assert await redis.pttl("arq:job:b") > await redis.pttl("arq:job:a") > 86_400_000

    lease = await claim_one(queue)
    leased = await contents(redis)
    assert await queue.enqueue([request("a")]) == [EnqueueResult.ALREADY_THERE]
    assert await contents(redis) == leased
    await queue.ack([Ack(lease, Disposition.DONE)])
    assert await queue.enqueue([request("a")]) == [EnqueueResult.SCHEDULED]


@pytest.mark.parametrize("gone", ["arq:job:a", "arq:queue"])
async def test_an_id_without_payload_or_a_payload_without_id_is_restored(queue: Queue, redis: Any, gone: str) -> None:
    await queue.enqueue([request("a")])
    await redis.delete(gone)
    assert await queue.enqueue([request("a")]) == [EnqueueResult.SCHEDULED]
    assert (await claim_one(queue)).id == "a"


async def test_a_kept_result_blocks_only_requests_with_once(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    await queue.ack([Ack(await claim_one(queue), Disposition.DONE, 60_000, b"r")])
    assert await queue.results(["none", "a"]) == [None, b"r"]
    assert 50_000 < await redis.pttl("arq:result:a") <= 60_000
    assert await queue.enqueue([request("a", once=True), request("b", once=True), request("a")]) == [
        EnqueueResult.RESULT_BLOCKS,
        EnqueueResult.SCHEDULED,
        EnqueueResult.SCHEDULED,
    ]


async def test_a_score_is_never_zero_which_arq_would_ignore(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a", -(10**14))])
    assert await score(redis, "a") == 1
    lease = await claim_one(queue)
    assert (lease.id, lease.due_ms) == ("a", 1)
    await queue.ack([Ack(lease, Disposition.RELEASE, 0)])
    assert await score(redis, "a") == 1
    await queue.ack([Ack(await claim_one(queue), Disposition.RETRY, -(10**14))])
    assert await score(redis, "a") == 1


async def test_several_queues_in_one_batch_keep_the_order_of_the_results(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("2", queue="b")])
    batch = [request("1", queue="a"), request("2", queue="b"), request("3", queue="default"), request("4", queue="a")]
    assert await queue.enqueue(batch) == [1, 0, 1, 1]
    assert [await queue.depth(name) for name in ("a", "b", "default", "none")] == [2, 1, 1, 0]
    assert set(await redis.keys("arq:queue*")) == {b"arq:queue", b"arq:queue:a", b"arq:queue:b"}

    leases = {each.id: each for name in ("a", "b", "default") for each in (await queue.claim(name, 9, LEASE_S)).leases}
    held = [leases[each.id] for each in batch]
    assert await queue.renew([held[0], forged(held[1]), held[2], held[1]], LEASE_S) == [1, 0, 1, 1]
    returns = [Ack(lease, Disposition.DONE) for lease in (held[2], forged(held[1]), *held[:2])]
    assert await queue.ack(returns) == [1, 0, 1, 1]
    assert [await queue.depth(name) for name in ("a", "b", "default")] == [1, 0, 0]
    assert await queue.enqueue([]) == []


def test_names_of_queues_convert_to_arqs_names_and_back() -> None:
    for name, key in (("default", "arq:queue"), ("browser", "arq:queue:browser"), ("a.b", "arq:queue:a.b")):
        assert (redis_name(name), queue_of(key)) == (key, name)


# claim


async def test_ids_are_claimed_in_the_order_in_which_they_fall_due_and_never_early(queue: Queue, redis: Any) -> None:
    await queue.enqueue(
        [request("late", -1000), request("later", 60_000), request("latest", -9000), request("now", -1)]
    )
    first = await queue.claim("default", 2, LEASE_S)
    assert ids(first) == ["latest", "late"]
    assert first.wait_s == 0
    second = await queue.claim("default", 9, LEASE_S)
    assert ids(second) == ["now"]
    third = await queue.claim("default", 9, LEASE_S)
    assert ids(third) == []
    assert third.wait_s is not None
    assert 25 < third.wait_s <= LEASE_S + 0.001, "the leases end before the next id falls due"
    assert all(lease.tries == 1 and decode_envelope(lease.payload).f == "f" for lease in first.leases)


async def test_a_claim_returns_when_the_next_id_falls_due(queue: Queue) -> None:
    assert (await queue.claim("default", 1, LEASE_S)).wait_s is None
    await queue.enqueue([request("a", 60_000), request("b", 90_000)])
    wait_s = (await queue.claim("default", 1, LEASE_S)).wait_s
    assert wait_s is not None
    assert 55 < wait_s <= 60
    await queue.enqueue([request("c", 10_000)])
    wait_s = (await queue.claim("default", 1, LEASE_S)).wait_s
    assert wait_s is not None
    assert 5 < wait_s <= 10


async def test_a_leased_id_leaves_the_head_of_the_queue_until_its_lease_ends(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    before = await now_ms(redis)
    lease = await claim_one(queue)
    after = await now_ms(redis)
    end_ms = await score(redis, "a")
    assert before + LEASE_S * 1000 - 1 <= end_ms <= after + LEASE_S * 1000 + 0.5
    assert await redis.get("arq:in-progress:a") == lease.token.encode()
    assert LEASE_S * 1000 - 5000 < await redis.pttl("arq:in-progress:a") <= LEASE_S * 1000


async def lose_lease(redis: Any, id_: str, after_ms: int) -> None:
    """Make a lease expire as if `after_ms` had passed since it was granted or renewed."""
    await redis.delete(f"arq:in-progress:{id_}")
    await redis.zincrby("arq:queue", -after_ms, id_)


@pytest.mark.parametrize("renewed", [False, True])
async def test_an_unfinished_try_is_counted_by_the_next_claim(queue: Queue, redis: Any, renewed: bool) -> None:
    await queue.enqueue([request("a")])
    for tries in (1, 2, 3):
        lease = await claim_one(queue)
        assert lease.tries == tries
        assert await redis.get("arq:retry:a") == (None if tries == 1 else str(tries - 1).encode())
        if renewed:
            assert await queue.renew([lease], LEASE_S) == [Renewal.RENEWED]
        await lose_lease(redis, "a", 40_000)
    lease = await claim_one(queue)
    assert await queue.ack([Ack(lease, Disposition.RELEASE, lease.due_ms)]) == [AckResult.APPLIED]
    lease = await claim_one(queue)
    assert lease.tries == 4, "the release does not count its own try, but the lost ones count"
    assert await queue.ack([Ack(lease, Disposition.DONE)]) == [AckResult.APPLIED]
    assert await redis.keys("arq:*") == []


async def test_a_lease_whose_score_was_restored_and_that_is_then_lost_counts_once(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    await claim_one(queue)
    await redis.zadd("arq:queue", {"a": 1})
    assert (await queue.claim("default", 1, LEASE_S)).leases == []
    await lose_lease(redis, "a", 40_000)
    assert (await claim_one(queue)).tries == 2


async def test_the_tries_of_a_record_are_not_counted_in_redis(queue: Queue, redis: Any) -> None:
    record_id = new_id()
    await queue.enqueue([EnqueueRequest.of_record("default", Priority.NORMAL, record_id, "f", 0)])
    await queue.ack([Ack(await claim_one(queue), Disposition.RETRY)])
    await claim_one(queue)
    await lose_lease(redis, str(record_id), 40_000)
    assert (await claim_one(queue)).tries == 1
    assert not await redis.exists(f"arq:retry:{record_id}")


async def test_the_score_of_a_live_lease_is_restored_if_something_changed_it(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a"), request("b", -1)])
    await queue.claim("default", 2, LEASE_S)
    await redis.zadd("arq:queue", {"a": 1, "b": 2})
    await queue.enqueue([request("c")])
    assert ids(await queue.claim("default", 9, LEASE_S)) == ["c"]
    for each in ("a", "b"):
        assert await score(redis, each) > await now_ms(redis) + LEASE_S * 1000 - 5000


async def test_leases_of_plain_arq_workers_are_skipped_and_not_changed(queue: Queue, redis: Any) -> None:
    theirs = [f"theirs {number:03}" for number in range(150)]
    await queue.enqueue([request(each, -1000) for each in theirs])
    for each in theirs:
        await redis.set(f"arq:in-progress:{each}", b"1", px=60_000)
    await queue.enqueue([request("a", -10), request("b", 60_000)])
    scores = {each: await score(redis, each) for each in theirs}
    claim = await queue.claim("default", 1, LEASE_S)
    assert ids(claim) == ["a"]
    claim = await queue.claim("default", 9, LEASE_S)
    assert ids(claim) == []
    assert claim.wait_s is not None
    assert 25 < claim.wait_s <= LEASE_S + 0.001
    assert {each: await score(redis, each) for each in theirs} == scores


async def test_an_id_without_payload_is_removed_and_reported(queue: Queue, redis: Any) -> None:
    await redis.zadd("arq:queue", {"gone": 1, b"\xff": 2})
    await queue.enqueue([request("a")])
    claim = await queue.claim("default", 9, LEASE_S)
    assert ids(claim) == ["a"]
    assert [(lost.queue, lost.priority, lost.id) for lost in claim.missing] == [
        ("default", Priority.NORMAL, "gone"),
        ("default", Priority.NORMAL, "\udcff"),
    ]
    assert await redis.zrange("arq:queue", 0, -1) == [b"a"]


async def test_every_claim_has_its_own_token(redis: Any) -> None:
    one, other = Queue(redis), Queue(redis)
    await one.enqueue([request(str(number)) for number in range(40)])
    claims = [await queue.claim("default", 10, LEASE_S) for queue in (one, other, one, other)]
    tokens = {lease.token for claim in claims for lease in claim.leases}
    assert [len(claim.leases) for claim in claims] == [10] * 4
    assert len(tokens) == 4
    lease = claims[0].leases[0]
    await one.ack([Ack(lease, Disposition.RETRY)])
    again = await claim_one(one)
    assert again.id == lease.id
    assert again.token not in tokens
    assert again.tries == 2


async def test_an_expired_lease_makes_its_id_due_again_with_another_try(queue: Queue) -> None:
    await queue.enqueue([request("a")])
    first = (await queue.claim("default", 1, 0.05)).leases[0]
    deadline = time.monotonic() + DEADLINE_S
    while not (claim := await queue.claim("default", 1, LEASE_S)).leases:
        assert time.monotonic() < deadline
        assert claim.wait_s is not None
        await queue.sleep("default", claim.wait_s)
    (second,) = claim.leases
    assert (second.id, second.tries) == ("a", 2)
    assert second.token != first.token
    assert await queue.renew([first], LEASE_S) == [Renewal.FENCED]
    assert await queue.ack([Ack(first, Disposition.DONE)]) == [AckResult.FENCED]


async def test_concurrent_claims_lease_each_id_once(queue: Queue) -> None:
    await queue.enqueue([request(str(number)) for number in range(100)])
    claims = await asyncio.gather(*(queue.claim("default", 30, LEASE_S) for _ in range(5)))
    claimed = [each for claim in claims for each in ids(claim)]
    assert sorted(claimed, key=int) == [str(number) for number in range(100)]


# renew


async def test_renewing_returns_the_outcome_of_each_lease_and_extends_only_its_own(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request(each, -10) for each in ("mine", "aborted", "theirs", "unknown")])
    leases = {lease.id: lease for lease in (await queue.claim("default", 4, 5.0)).leases}
    await redis.set("arq:in-progress:theirs", b"another", px=5000)
    await redis.delete("arq:in-progress:unknown")
    await redis.zadd("arq:abort", {"aborted": 1})
    scores = {each: await score(redis, each) for each in leases}
    results = dict(zip(leases, await queue.renew(list(leases.values()), LEASE_S), strict=True))
    assert results == {
        "mine": Renewal.RENEWED,
        "aborted": Renewal.ABORT_WANTED,
        "theirs": Renewal.FENCED,
        "unknown": Renewal.UNKNOWN,
    }
    for each, extended in (("mine", True), ("aborted", True), ("theirs", False), ("unknown", False)):
        assert (await score(redis, each) > scores[each]) == extended
    assert await redis.pttl("arq:in-progress:mine") > 20_000
    assert await redis.pttl("arq:in-progress:theirs") <= 5000
    assert not await redis.exists("arq:in-progress:unknown")


async def test_renewing_does_not_restore_an_id_that_left_the_queue(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    lease = await claim_one(queue)
    await redis.zrem("arq:queue", "a")
    assert await queue.renew([lease], LEASE_S) == [Renewal.RENEWED]
    assert await queue.depth("default") == 0


# ack


async def test_done_removes_every_key_except_the_kept_result(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a"), request("b")])
    await redis.zadd("arq:abort", {"a": 1})
    leases = (await queue.claim("default", 2, LEASE_S)).leases
    await redis.delete(WAKE)
    returns = [Ack(lease, Disposition.DONE, 60_000, result) for lease, result in zip(leases, (b"", b"r"), strict=True)]
    assert await queue.ack(returns) == [AckResult.APPLIED] * 2
    assert await contents(redis) == {f"arq:result:{leases[1].id}".encode(): b"r"}
    assert await queue.ack(returns) == [AckResult.UNKNOWN] * 2


async def test_a_retry_is_due_after_its_delay_and_counts(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    lease = await claim_one(queue)
    before = await now_ms(redis)
    assert await queue.ack([Ack(lease, Disposition.RETRY, 60_000)]) == [AckResult.APPLIED]
    assert before + 60_000 - 1 <= await score(redis, "a") <= await now_ms(redis) + 60_000
    assert await redis.get("arq:retry:a") == b"1"
    assert not await redis.exists("arq:in-progress:a")
    assert await redis.exists("arq:job:a")


async def test_a_release_restores_the_position_and_does_not_count_the_try(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a", -5000), request("b", -4000)])
    position = await score(redis, "a")
    lease = await claim_one(queue)
    assert await queue.ack([Ack(lease, Disposition.RELEASE, lease.due_ms)]) == [AckResult.APPLIED]
    assert await score(redis, "a") == position
    again = await queue.claim("default", 2, LEASE_S)
    assert ids(again) == ["a", "b"]
    assert [each.tries for each in again.leases] == [1, 1]


@pytest.mark.parametrize("disposition", list(Disposition))
async def test_an_ack_without_the_lease_changes_nothing(queue: Queue, redis: Any, disposition: Disposition) -> None:
    await queue.enqueue([request("a"), request("b")])
    first, second = (await queue.claim("default", 2, LEASE_S)).leases
    await redis.delete(f"arq:in-progress:{second.id}", WAKE)
    before = await contents(redis)
    returns = [
        Ack(forged(first), disposition, 5, b"r", 60_000),
        Ack(second, disposition, 5, b"r", 60_000),
        Ack(msgspec.structs.replace(second, id="unknown"), disposition, 5, b"r", 60_000),
    ]
    assert await queue.ack(returns) == [AckResult.FENCED, AckResult.UNKNOWN, AckResult.UNKNOWN]
    assert await contents(redis) == before


# waking


async def test_one_enqueue_wakes_one_sleeper(queue: Queue, redis: Any) -> None:
    sleepers = [asyncio.create_task(queue.sleep("default", 1.5)) for _ in range(3)]
    await blocked(redis, 3)
    await queue.enqueue([request("a"), request("b")])
    done, waiting = await asyncio.wait(sleepers, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
    assert [task.result() for task in done] == [True]
    assert len(waiting) == 2
    assert await asyncio.gather(*waiting) == [False, False]


async def test_a_claim_that_leaves_ready_ids_wakes_the_next_sleeper(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a"), request("b"), request("c", 60_000)])
    assert await queue.sleep("default", 0.01)
    assert await redis.llen(WAKE) == 0
    await queue.claim("default", 1, LEASE_S)
    assert await redis.llen(WAKE) == 1
    assert await queue.sleep("default", 0.01)
    await queue.claim("default", 1, LEASE_S)
    assert await redis.llen(WAKE) == 0
    assert not await queue.sleep("default", 0.01)


async def test_a_woken_worker_has_claimed(queue: Queue, redis: Any) -> None:
    claiming = asyncio.create_task(queue.sleep_and_claim("default", 3, 10, LEASE_S))
    await blocked(redis, 1)
    await queue.enqueue([request("a"), request("b", 60_000)])
    claim = await claiming
    assert [lease.id for lease in claim.leases] == ["a"]
    assert await redis.get("arq:in-progress:a") == claim.leases[0].token.encode()


async def test_one_enqueue_lets_one_sleeper_claim(queue: Queue, redis: Any) -> None:
    claiming = [asyncio.create_task(queue.sleep_and_claim("default", 1.5, 10, LEASE_S)) for _ in range(3)]
    await blocked(redis, 3)
    await queue.enqueue([request("a"), request("b")])
    await asyncio.wait(claiming, timeout=DEADLINE_S)
    assert sorted(len(task.result().leases) for task in claiming) == [0, 0, 2]


async def test_a_sleep_before_a_claim_ends_when_an_id_falls_due(queue: Queue) -> None:
    await queue.enqueue([request("a", 300)])
    claim = await queue.claim("default", 1, LEASE_S)
    while not claim.leases:
        assert claim.wait_s is not None
        claim = await queue.sleep_and_claim("default", claim.wait_s, 1, LEASE_S)
    assert claim.leases[0].id == "a"


async def test_a_nudge_ends_only_our_own_sleep(queue: Queue, redis: Any) -> None:
    other = Queue(redis)
    ours, others = (asyncio.create_task(each.sleep_and_claim("default", 3, 1, LEASE_S)) for each in (queue, other))
    await blocked(redis, 2)
    await queue.nudge("default")
    assert (await ours).leases == []
    assert not others.done()
    await queue.enqueue([request("a")])
    assert [lease.id for lease in (await others).leases] == ["a"]


async def test_a_nudge_ends_a_sleep_that_begins_after_it_and_expires(queue: Queue, redis: Any) -> None:
    await queue.nudge("default")
    (key,) = await redis.keys("cplane:nudge:*")
    assert 0 < await redis.pttl(key) <= 2000
    async with asyncio.timeout(2):
        await queue.sleep_and_claim("default", 3, 1, LEASE_S)
    assert not await redis.exists(key)


async def test_a_script_flush_during_a_sleep_does_not_prevent_the_claim(queue: Queue, redis: Any) -> None:
    claiming = asyncio.create_task(queue.sleep_and_claim("default", 3, 1, LEASE_S))
    await blocked(redis, 1)
    await redis.script_flush()
    await queue.enqueue([request("a")])
    assert [lease.id for lease in (await claiming).leases] == ["a"]


async def test_a_wake_list_of_another_type_raises_but_ready_ids_are_claimed(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    await redis.set(WAKE, "not a list")
    assert len((await queue.sleep_and_claim("default", 1, 1, LEASE_S)).leases) == 1
    with pytest.raises(QueueUnavailable, match=r"Redis replied with an error while claiming jobs: .*WRONGTYPE"):
        await queue.sleep_and_claim("default", 1, 1, LEASE_S)


@pytest.mark.parametrize(
    ("delays_ms", "woken"), [([0], 1), ([60_000], 1), ([60_000, 90_000], 1), ([90_000, 60_000], 2), ([60_000, 0], 2)]
)
async def test_only_an_id_that_is_due_before_all_others_wakes_a_worker(
    queue: Queue, redis: Any, delays_ms: Sequence[int], woken: int
) -> None:
    for delay_ms in delays_ms:
        await queue.enqueue([request(str(delay_ms), delay_ms)])
    assert await redis.llen(WAKE) == woken


@pytest.mark.parametrize("disposition", [Disposition.RETRY, Disposition.RELEASE])
async def test_a_retry_or_release_wakes_a_sleeper(queue: Queue, redis: Any, disposition: Disposition) -> None:
    await queue.enqueue([request("a")])
    lease = await claim_one(queue)
    await redis.delete(WAKE)
    await queue.ack([Ack(lease, disposition, lease.due_ms if disposition is Disposition.RELEASE else 0)])
    assert await redis.llen(WAKE) == 1


async def test_unused_wake_tokens_do_not_pile_up(queue: Queue, redis: Any) -> None:
    for number in range(80):
        await queue.enqueue([request(str(number))])
    assert await redis.llen(WAKE) == 64
    await queue.claim("default", 1, LEASE_S)
    await queue.ack([Ack(lease, Disposition.RETRY) for lease in (await queue.claim("default", 5, LEASE_S)).leases])
    assert await redis.llen(WAKE) == 64


# arq's own client


@pytest_asyncio.fixture
async def arq(redis: Any) -> ArqRedis:
    """arq's client on our connections, with the serializer that the documentation tells arq's users to set."""
    return ArqRedis(
        redis.connection_pool, job_serializer=msgspec.msgpack.encode, job_deserializer=msgspec.msgpack.decode
    )


async def test_arqs_client_reads_our_jobs(queue: Queue, arq: ArqRedis) -> None:
    record_id = new_id()
    await queue.enqueue([EnqueueRequest.of_record("browser", Priority.NORMAL, record_id, "headline", 60_000)])
    theirs = ArqJob(str(record_id), arq, redis_name("browser"), _deserializer=msgspec.msgpack.decode)
    info = await theirs.info()
    assert info is not None
    assert (info.function, list(info.args), info.kwargs) == ("headline", [], {})
    assert info.score is not None
    assert await theirs.status() is JobStatus.deferred
    assert [each.function for each in await arq.queued_jobs(queue_name=redis_name("browser"))] == ["headline"]


async def test_arqs_client_reads_the_status_of_our_jobs(queue: Queue, arq: ArqRedis) -> None:
    await queue.enqueue([request("a")])
    theirs = ArqJob("a", arq, _deserializer=msgspec.msgpack.decode)
    assert await theirs.status() is JobStatus.queued
    lease = await claim_one(queue)
    assert await theirs.status() is JobStatus.in_progress
    await queue.ack([Ack(lease, Disposition.DONE)])
    assert await theirs.status() is JobStatus.not_found


async def test_a_job_that_arqs_client_enqueues_is_claimed(queue: Queue, arq: ArqRedis) -> None:
    theirs = await arq.enqueue_job("add", 1, 2, label="a", _queue_name=redis_name("browser"))
    later = await arq.enqueue_job("add", _defer_by=60, _queue_name=redis_name("browser"))
    assert theirs is not None
    assert later is not None
    await asyncio.sleep(0.001)  # arq rounds the time to whole milliseconds, also up
    claim = await queue.claim("browser", 9, LEASE_S)
    (lease,) = claim.leases
    assert lease.id == theirs.job_id
    envelope = decode_envelope(lease.payload)
    assert (envelope.f, envelope.a, envelope.k) == ("add", [1, 2], {"label": "a"})
    assert not envelope.record


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x80\x04\x95pickle", msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"a": []}), msgspec.msgpack.encode({"f": 1})],
)  # fmt: skip
def test_a_payload_that_is_not_arqs_job_dict_is_rejected(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"the payload is (not arq's job dict|a pickle)"):
        decode_envelope(payload)


# faults


async def test_flushed_scripts_are_sent_again(queue: Queue, redis: Any) -> None:
    await queue.enqueue([request("a")])
    await redis.script_flush()
    lease = await claim_one(queue)
    await redis.script_flush()
    assert await queue.renew([lease], LEASE_S) == [Renewal.RENEWED]


async def test_scripts_run_even_if_they_are_flushed_before_every_call(
    queue: Queue, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evalsha = redis.evalsha

    async def flushed(*args: Any) -> Any:
        await redis.script_flush()
        return await evalsha(*args)

    monkeypatch.setattr(redis, "evalsha", flushed)
    await queue.enqueue([request("a")])
    lease = await claim_one(queue)
    assert await queue.ack([Ack(lease, Disposition.DONE)]) == [AckResult.APPLIED]


async def test_an_error_of_a_script_names_the_operation(queue: Queue, redis: Any) -> None:
    await redis.set("arq:queue", "not a sorted set")
    with pytest.raises(QueueUnavailable, match=r"Redis replied with an error while claiming jobs: .*WRONGTYPE"):
        await queue.claim("default", 1, LEASE_S)
    with pytest.raises(QueueUnavailable, match="Redis replied with an error while counting jobs"):
        await queue.depth("default")


async def test_every_call_raises_without_the_password_if_redis_is_unreachable() -> None:
    async with connect(SecretStr("redis://user:hunter2@127.0.0.1:1/0")) as client:
        queue = Queue(client)
        lease = Lease("default", Priority.NORMAL, "a", b"", 1, b"1", "t")
        for call in (
            queue.ping(),
            queue.enqueue([request("a")]),
            queue.claim("default", 1, LEASE_S),
            queue.sleep("default", 1),
            queue.sleep_and_claim("default", 1, 1, LEASE_S),
            queue.nudge("default"),
            queue.renew([lease], LEASE_S),
            queue.ack([Ack(lease, Disposition.DONE)]),
            queue.write_health("k", "v", 1),
            queue.depth("default"),
            queue.results(["a"]),
            queue.sweep("default"),
            queue.stats("default"),
            DeadLetterStream(client).newest(),
            DeadLetterStream(client).count(),
            DeadLetterStream(client).drop("a"),
            DeadLetterStream(client).add([(Id("default", Priority.NORMAL, "a"), "why", b"")]),
            queue.abort("default", "a", b"", 1),
            queue.aborts(),
            queue.now_ms(),
            queue.presence("a"),
            queue.epoch(),
            queue.epoch(1),
            queue.eviction_policy(),
        ):
            with pytest.raises(QueueUnavailable, match="Redis did not respond while") as caught:
                await call
            assert "CPLANE_REDIS_URL" in str(caught.value.hint)
            assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
        assert await queue.enqueue([]) == [], "nothing to do needs no Redis"


async def test_a_redis_that_never_responds_raises_within_six_seconds() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(SecretStr(f"redis://127.0.0.1:{port}")) as client:
            began = time.monotonic()
            with pytest.raises(QueueUnavailable, match="Redis did not respond while claiming jobs"):
                await Queue(client).claim("default", 1, LEASE_S)
            assert time.monotonic() - began < 6
        for writer in held:
            writer.close()


async def test_a_health_line_is_kept_for_the_given_time(queue: Queue, redis: Any) -> None:
    await queue.ping()
    await queue.write_health("arq:queue:health-check", "j_complete=1", 60)
    assert await redis.get("arq:queue:health-check") == b"j_complete=1"
    assert 50_000 < await redis.pttl("arq:queue:health-check") <= 60_000
    assert await queue.results(["none"]) == [None]


async def test_an_id_that_is_named_twice_is_scheduled_once_by_its_first_request(queue: Queue, redis: Any) -> None:
    results = await queue.enqueue([request("a", 60_000), request("b"), request("a")])
    assert results == [EnqueueResult.SCHEDULED, EnqueueResult.SCHEDULED, EnqueueResult.ALREADY_THERE]
    assert ids(await queue.claim("default", 9, LEASE_S)) == ["b"]
    many = [request(str(number)) for number in range(2500)]
    assert await queue.enqueue([*many, many[7]]) == [EnqueueResult.SCHEDULED] * 2500 + [EnqueueResult.ALREADY_THERE]
    assert await queue.depth("default") == 2502


async def test_the_stats_of_a_queue_count_ready_scheduled_and_running_separately(queue: Queue) -> None:
    late = EnqueueRequest("default", "late", b"x", 60_000)
    await queue.enqueue([request("a"), request("b"), request("c"), late])
    assert await queue.stats("nothing") == QueueStats("nothing", 0, 0, 0, 0)
    (lease,) = (await queue.claim("default", 1, LEASE_S)).leases
    stats = await queue.stats("default")
    assert (stats.ready, stats.scheduled, stats.running) == (2, 1, 1)
    assert stats.latency_s >= 0
    await queue.renew([lease], LEASE_S)
    assert (await queue.stats("default")).running == 1
    await queue.ack([Ack(lease, Disposition.POSTPONE, 60_000)])
    stats = await queue.stats("default")
    assert (stats.ready, stats.scheduled, stats.running) == (2, 2, 0)


async def test_running_ids_are_counted_among_the_first_that_fall_due(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.redis.queue.RUNNING_SCAN_LIMIT", 2)
    await queue.enqueue([request(str(number)) for number in range(5)])
    await queue.claim("default", 5, LEASE_S)
    stats = await queue.stats("default")
    assert (stats.ready, stats.scheduled, stats.running) == (0, 3, 2)
