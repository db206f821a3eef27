"""Deadlines of requests: one timer for all, and the guarantees of asyncio.timeout."""

import asyncio

import pytest

from cplane.web.deadlines import Deadline, Deadlines

LONG_S = 60.0


@pytest.fixture
def deadlines() -> Deadlines:
    return Deadlines()


async def never() -> None:
    await asyncio.Event().wait()


async def test_an_expired_block_is_cancelled_and_raises_timeout_error(deadlines: Deadlines) -> None:
    with pytest.raises(TimeoutError) as caught, deadlines.after(0.01) as deadline:
        await never()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert deadline.expired
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_block_that_ends_in_time_is_not_cancelled(deadlines: Deadlines) -> None:
    with deadlines.after(0.01) as first:
        pass
    with deadlines.after(LONG_S), pytest.raises(TimeoutError), deadlines.after(0.03):  # longer than the first deadline
        await never()
    assert not first.expired


async def test_only_expired_blocks_are_cancelled(deadlines: Deadlines) -> None:
    ended: list[float] = []

    async def wait(seconds: float) -> None:
        try:
            with deadlines.after(seconds):
                await never()
        except TimeoutError:
            ended.append(seconds)

    long = asyncio.create_task(wait(LONG_S), name="long")
    await asyncio.gather(wait(0.03), wait(0.01), wait(0.02))
    assert ended == [0.01, 0.02, 0.03]
    assert not long.done()
    long.cancel()
    await asyncio.wait([long])
    assert long.cancelled()


async def test_a_deadline_can_be_moved_earlier_and_later(deadlines: Deadlines) -> None:
    async def moved(deadline: Deadline) -> None:
        deadline.reschedule(0.01)
        await never()

    with pytest.raises(TimeoutError), deadlines.after(LONG_S) as deadline:
        await moved(deadline)
    with deadlines.after(0.01) as deadline:
        deadline.reschedule(LONG_S)
        with pytest.raises(TimeoutError), deadlines.after(0.03):
            await never()
    assert not deadline.expired


async def test_a_cancellation_from_outside_stays_a_cancellation(deadlines: Deadlines) -> None:
    inside = asyncio.Event()

    async def wait() -> None:
        with deadlines.after(LONG_S):
            inside.set()
            await never()

    task = asyncio.create_task(wait(), name="wait")
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_together_with_the_deadline_is_not_lost(deadlines: Deadlines) -> None:
    opened: list[Deadline] = []

    async def wait() -> None:
        with deadlines.after(LONG_S) as deadline:
            opened.append(deadline)
            await never()

    task = asyncio.create_task(wait(), name="wait")
    await asyncio.sleep(0)
    opened[0].expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_after_expiry_is_raised_unchanged(deadlines: Deadlines) -> None:
    async def fail_late(deadline: Deadline) -> None:
        try:
            await never()
        except asyncio.CancelledError:
            deadline.reschedule(LONG_S)
            raise LookupError from None

    with pytest.raises(LookupError), deadlines.after(0.01) as deadline:
        await fail_late(deadline)
    assert deadline.expired
    await asyncio.sleep(0)  # no cancellation is left over


async def test_sequential_requests_need_one_timer(deadlines: Deadlines, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    call_at = loop.call_at

    def counted(*args: object, **kwargs: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return call_at(*args, **kwargs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  passed on unchanged

    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(100):
        with deadlines.after(LONG_S) as deadline:
            deadline.reschedule(LONG_S / 2)
    assert timers == 2


def test_another_event_loop_has_its_own_timer(deadlines: Deadlines) -> None:
    async def quick() -> None:
        with deadlines.after(0.01):
            pass

    async def slow() -> None:
        with pytest.raises(TimeoutError), deadlines.after(0.03):
            await never()

    asyncio.run(quick())  # its timer belongs to a loop that is closed
    asyncio.run(slow())
