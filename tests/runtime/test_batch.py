"""Adaptive batching: items that arrive while a batch is in flight form the next one."""

import asyncio
from collections.abc import Sequence

import pytest

from cplane.runtime.batch import Batch


class Sender:
    """Sends while `open` is set, and keeps the batches it received."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.sending = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, items: list[int]) -> Sequence[str]:
        self.batches.append(items)
        self.sending.set()
        await self.open.wait()
        if any(item < 0 for item in items):
            raise ValueError(items)
        return [str(item) for item in items]


async def test_items_that_arrive_while_a_batch_is_in_flight_form_the_next_one_each_with_its_reply() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b", limit=3) as batch:
        first = batch.put(1)
        await sender.sending.wait()
        later = [batch.put(number) for number in range(2, 7)]
        sender.open.set()
        assert await first == "1"
        assert await asyncio.gather(*later) == ["2", "3", "4", "5", "6"]
        assert await batch(7) == "7"
    assert sender.batches == [[1], [2, 3, 4], [5, 6], [7]]


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b") as batch:
        succeeding = batch.put(1)
        await sender.sending.wait()
        failing = [batch.put(2), batch.put(-3)]
        sender.open.set()
        assert await succeeding == "1"
        for future in failing:
            with pytest.raises(ValueError, match=r"\[2, -3\]"):
                await future
        assert await batch(4) == "4"


async def test_a_cancelled_caller_does_not_affect_the_others_and_its_item_is_still_sent() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b") as batch:
        first = batch.put(1)
        await sender.sending.wait()
        cancelled, waiting = batch.put(2), batch.put(3)
        cancelled.cancel()
        first.cancel()
        sender.open.set()
        assert await waiting == "3"
    assert sender.batches == [[1], [2, 3]]
    assert cancelled.cancelled()


async def test_an_error_without_a_waiter_is_not_logged_as_never_retrieved(caplog: pytest.LogCaptureFixture) -> None:
    async with Batch(Sender(), name="b") as batch:
        batch.put(-1)
    assert not caplog.records


async def test_leaving_sends_the_pending_items_and_then_accepts_no_more() -> None:
    sender = Sender()
    async with Batch(sender, name="schedule jobs") as batch:
        futures = [batch.put(number) for number in range(5)]
    assert [future.result() for future in futures] == ["0", "1", "2", "3", "4"]
    with pytest.raises(RuntimeError, match="schedule jobs is closed"):
        batch.put(5)


async def test_leaving_finishes_sending_even_if_it_is_cancelled() -> None:
    sender = Sender()
    sender.open.clear()
    futures: list[asyncio.Future[str]] = []

    async def leave() -> None:
        async with Batch(sender, name="b") as batch:
            futures.append(batch.put(1))

    leaving = asyncio.create_task(leave())
    await sender.sending.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    sender.open.set()
    assert await futures[0] == "1"


async def test_a_wrong_number_of_replies_is_an_error_for_the_callers_and_does_not_stop_sending() -> None:
    replies = [[], ["a"]]

    async def one_reply_short(items: list[int]) -> Sequence[str]:
        return replies.pop(0)

    async with Batch(one_reply_short, name="b") as batch, asyncio.timeout(20):
        with pytest.raises(ValueError, match="zip"):
            await batch(1)
        assert await batch(2) == "a"


async def test_without_items_nothing_is_sent() -> None:
    sender = Sender()
    async with Batch(sender, name="b"):
        pass
    assert sender.batches == []


class Gate:
    """Holds each batch until the test releases it."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, ...], asyncio.Future[None]] = {}
        self.changed = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[str]:
        released = self.batches[tuple(items)] = asyncio.get_running_loop().create_future()
        self.changed.set()
        await released
        return [str(item) for item in items]

    async def until(self, *batches: tuple[int, ...]) -> None:
        """Wait until exactly these batches were started."""
        async with asyncio.timeout(20):
            while len(self.batches) < len(batches):
                self.changed.clear()
                await self.changed.wait()
        await turns()
        assert tuple(self.batches) == batches

    def release(self, *items: int) -> None:
        self.batches[items].set_result(None)


async def turns() -> None:
    """Run the event loop until every ready callback has run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_second_batch_is_sent_next_to_the_first_once_it_is_half_as_large_but_no_third() -> None:
    gate = Gate()
    async with Batch(gate, name="b", overlap=True) as batch:
        first = [batch.put(number) for number in (1, 2, 3)]
        await gate.until((1, 2, 3))
        second = [batch.put(4)]
        await turns()
        assert tuple(gate.batches) == ((1, 2, 3),), "one item is less than half of three"
        second.append(batch.put(5))
        await gate.until((1, 2, 3), (4, 5))
        third = [batch.put(number) for number in (6, 7, 8)]
        await turns()
        assert tuple(gate.batches) == ((1, 2, 3), (4, 5))
        gate.release(4, 5)
        assert await asyncio.gather(*second) == ["4", "5"]
        assert not any(future.done() for future in first)
        await gate.until((1, 2, 3), (4, 5), (6, 7, 8))
        gate.release(1, 2, 3)
        assert await asyncio.gather(*first) == ["1", "2", "3"]
        gate.release(6, 7, 8)
        assert await asyncio.gather(*third) == ["6", "7", "8"]


async def test_a_batch_that_is_too_small_is_sent_when_the_first_has_ended() -> None:
    gate = Gate()
    async with Batch(gate, name="b", overlap=True) as batch:
        first = [batch.put(number) for number in (1, 2, 3)]
        await gate.until((1, 2, 3))
        last = batch.put(4)
        gate.release(1, 2, 3)
        await gate.until((1, 2, 3), (4,))
        gate.release(4)
        assert await asyncio.gather(*first, last) == ["1", "2", "3", "4"]


async def test_leaving_waits_for_both_batches_and_sends_the_pending_items() -> None:
    gate = Gate()

    async def release_each() -> None:
        for items in ((1,), (2,), (3, 4)):
            while items not in gate.batches:
                await asyncio.sleep(0)
            gate.release(*items)
            await turns()

    async with Batch(gate, name="b", overlap=True) as batch:
        futures = [batch.put(1)]
        await gate.until((1,))
        futures.append(batch.put(2))
        await gate.until((1,), (2,))
        futures += [batch.put(3), batch.put(4)]
        releasing = asyncio.create_task(release_each())
    assert [future.result() for future in futures] == ["1", "2", "3", "4"]
    await releasing


async def test_an_error_of_one_of_two_batches_does_not_affect_the_other() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b", overlap=True) as batch:
        succeeding = batch.put(1)
        await sender.sending.wait()
        failing = batch.put(-2)
        while len(sender.batches) < 2:
            await asyncio.sleep(0)
        sender.open.set()
        assert await succeeding == "1"
        with pytest.raises(ValueError, match="-2"):
            await failing
        assert await batch(3) == "3"


async def test_put_before_opening_is_an_error() -> None:
    batch = Batch(Sender(), name="schedule jobs")
    with pytest.raises(RuntimeError, match="schedule jobs is not open"):
        batch.put(1)
