import asyncio

import pytest

from cplane.browser.pool.slots import FairSemaphore
from cplane.errors import BrowserGone


async def test_a_slot_is_granted_to_the_waiter_that_waited_longest() -> None:
    slots = FairSemaphore(1)
    order: list[int] = []

    async def take(number: int) -> None:
        await slots.acquire()
        order.append(number)

    await slots.acquire()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(take(number))
        await asyncio.sleep(0)
        assert slots.waiting == 5
        for _ in range(5):
            slots.release()
    assert order == [0, 1, 2, 3, 4]
    assert (slots.used, slots.free, slots.waiting) == (1, 0, 0)


async def test_a_later_caller_does_not_overtake_a_waiter_that_was_granted_a_slot() -> None:
    slots = FairSemaphore(1)
    await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release()
    late = asyncio.create_task(slots.acquire())
    await waiting
    assert not late.done()
    slots.release()
    await late


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    slots = FairSemaphore(1)
    await slots.acquire()
    cancelled, patient = asyncio.create_task(slots.acquire()), asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    slots.release()
    await patient
    slots.release()
    assert (slots.used, slots.waiting) == (0, 0)


async def test_a_slot_granted_to_a_waiter_that_is_being_cancelled_goes_to_the_next() -> None:
    slots = FairSemaphore(1)
    await slots.acquire()
    cancelled, patient = asyncio.create_task(slots.acquire()), asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await patient
    slots.release()
    assert slots.used == 0


async def test_dismissed_waiters_get_the_error_and_hold_no_slot() -> None:
    slots = FairSemaphore(1)
    await slots.acquire()
    waiters = [asyncio.create_task(slots.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    slots.dismiss(lambda: BrowserGone("closed"))
    assert all(isinstance(error, BrowserGone) for error in await asyncio.gather(*waiters, return_exceptions=True))
    slots.release()
    assert slots.used == 0
