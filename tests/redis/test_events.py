"""The event streams on real Redis."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis

from cplane.errors import QueueUnavailable
from cplane.jobs.states import State
from cplane.redis.connection import connect
from cplane.redis.events import CONTROL, EVENTS, SUBSCRIPTION_TTL_S, Event, Events
from cplane.runtime.ids import new_id

DEADLINE_S = 20.0


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    """A client of the server, next to `Events`; its types are too loose to be useful."""
    async with connect(SecretStr(redis_url)) as client:
        yield client


@pytest.fixture
def events(redis: Redis) -> Events:
    return Events(redis)


def some(count: int) -> list[Event]:
    return [Event(new_id(), State.RUNNING, number) for number in range(count)]


async def test_events_are_read_unchanged_and_once(events: Events) -> None:
    await anext(events.follow())  # without a subscriber nothing is written
    after = await events.position()
    published = [
        Event(new_id(), State.QUEUED),
        Event(new_id(), State.RUNNING, 2, {"done": 1.5, "total": None, "note": "ünd"}),
        *(Event(new_id(), state, 3) for state in State),
    ]
    await events.publish(published)
    read, position = await events.read(after)
    assert read == published
    assert position == await events.position()
    (last,) = some(1)
    await events.publish([last])
    assert (await events.read(position))[0] == [last]


async def test_a_subscriber_receives_what_follows_its_first_empty_batch_and_nothing_earlier(events: Events) -> None:
    await events.publish(some(3))
    subscription = events.follow()
    async with asyncio.timeout(DEADLINE_S):
        assert await anext(subscription) == []
        received = asyncio.ensure_future(anext(subscription))
        later = some(2)
        await events.publish(later)
        assert await received == later


async def test_a_subscriber_of_an_empty_stream_receives_the_first_event(events: Events) -> None:
    subscription = events.follow(CONTROL)
    async with asyncio.timeout(DEADLINE_S):
        assert await anext(subscription) == []
        first = some(1)
        await events.publish(first, CONTROL)
        assert await anext(subscription) == first


async def test_streams_are_separate_and_every_subscriber_receives_every_event(events: Events, redis: Any) -> None:
    subscribers = [events.follow(), Events(redis).follow(), events.follow(CONTROL)]
    async with asyncio.timeout(DEADLINE_S):
        for subscriber in subscribers:
            await anext(subscriber)
        changes, requests = some(2), some(1)
        await events.publish(changes)
        await events.publish(requests, CONTROL)
        assert [await anext(subscriber) for subscriber in subscribers] == [changes, changes, requests]


@pytest.mark.parametrize(
    "entry",
    [
        {b"e": b"not msgpack \xc1"},
        {b"e": b""},
        {b"other": b"field"},
        {b"e": msgspec.msgpack.encode("text")},
        {b"e": msgspec.msgpack.encode([])},
        {b"e": msgspec.msgpack.encode([1, "queued", 0, None])},
        {b"e": msgspec.msgpack.encode(["not an id", "queued", 0, None])},
        {b"e": msgspec.msgpack.encode([str(new_id()), "vanished", 0, None])},
        {b"e": msgspec.msgpack.encode([str(new_id()), "queued", float("inf"), None])},
        {b"e": msgspec.msgpack.encode([str(new_id()), "queued", 0, "data"])},
        {b"e": msgspec.msgpack.encode([str(new_id()), "queued", 0, None, "more"])},
    ],
)
async def test_an_entry_of_another_format_is_skipped(events: Events, redis: Any, entry: dict[bytes, bytes]) -> None:
    subscription = events.follow()
    async with asyncio.timeout(DEADLINE_S):
        await anext(subscription)
        await redis.xadd(EVENTS, entry)
        ours = some(1)
        await events.publish(ours)
        received = await anext(subscription)
        while not received:  # the other entry may arrive alone
            received = await anext(subscription)
        assert received == ours


async def test_an_id_of_arqs_clients_hides_no_other_event_of_its_batch(events: Events) -> None:
    """arq's ids may be any text; the outcomes of a batch are published as one entry."""
    subscription = events.follow()
    ours = some(2)
    bare = [(str(event.record_id), event.state, event.attempt) for event in ours]
    async with asyncio.timeout(DEADLINE_S):
        await anext(subscription)
        await events.publish([bare[0], ("nightly report", State.SUCCEEDED, 1), bare[1]])
        received = await anext(subscription)
    assert [event.record_id for event in received] == [event.record_id for event in ours]


async def test_old_entries_are_deleted_from_the_stream(
    events: Events, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await anext(events.follow())
    for _ in range(300):
        await events.publish(some(3))
    assert await redis.xlen(EVENTS) == 300
    monkeypatch.setattr("cplane.redis.events.RETENTION_S", 0.0)
    await events.publish(some(1))
    assert await redis.xlen(EVENTS) <= 110, "all entries except those of about one node of the stream"


async def test_a_reader_that_is_behind_catches_up_in_batches(events: Events) -> None:
    await anext(events.follow())
    published = [some(2) for _ in range(1100)]
    for batch in published:
        await events.publish(batch)
    first, after = await events.read(b"0-0")
    rest, _ = await events.read(after)
    assert len(first) == 2000
    assert [*first, *rest] == [event for batch in published for event in batch]


async def test_nothing_is_written_without_a_subscriber(events: Events, redis: Any) -> None:
    await events.publish(some(5))
    assert await redis.keys("*") == []
    await anext(events.follow())
    assert 0 < await redis.ttl(f"{EVENTS}:subscribed") <= SUBSCRIPTION_TTL_S
    await events.publish(some(1))
    await events.publish(some(1), CONTROL)
    assert await redis.xlen(EVENTS) == 1
    assert await redis.exists(CONTROL) == 0


async def test_every_call_raises_if_redis_is_unreachable() -> None:
    async with connect(SecretStr("redis://:hunter2@127.0.0.1:1/0")) as client:
        events = Events(client)
        for call in (events.publish(some(1)), events.position(), events.read(b"0-0"), anext(events.follow())):
            with pytest.raises(
                QueueUnavailable, match=r"Redis did not respond while (publishing|reading|subscribing to) events"
            ) as caught:
                await call
            assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
        await events.publish([])
