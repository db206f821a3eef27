"""Natural batching: what gathers while one call is under way goes together in the next."""

import asyncio
from collections.abc import Sequence

import pytest

from cplane.runtime.batch import Batch


class Sender:
    """Sends when it is let, and remembers the groups."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.sending = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, items: list[int]) -> Sequence[str]:
        self.groups.append(items)
        self.sending.set()
        await self.open.wait()
        if any(item < 0 for item in items):
            raise ValueError(items)
        return [str(item) for item in items]


async def test_what_gathers_during_one_call_goes_together_in_the_next_each_with_its_answer() -> None:
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
    assert sender.groups == [[1], [2, 3, 4], [5, 6], [7]]


async def test_an_error_reaches_every_caller_of_its_group_and_no_other() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b") as batch:
        fine = batch.put(1)
        await sender.sending.wait()
        doomed = [batch.put(2), batch.put(-3)]
        sender.open.set()
        assert await fine == "1"
        for future in doomed:
            with pytest.raises(ValueError, match=r"\[2, -3\]"):
                await future
        assert await batch(4) == "4"


async def test_a_caller_that_gives_up_leaves_the_others_and_its_item_is_sent_all_the_same() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b") as batch:
        first = batch.put(1)
        await sender.sending.wait()
        impatient, patient = batch.put(2), batch.put(3)
        impatient.cancel()
        first.cancel()
        sender.open.set()
        assert await patient == "3"
    assert sender.groups == [[1], [2, 3]]
    assert impatient.cancelled()


async def test_an_error_that_nobody_waits_for_is_not_reported_as_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async with Batch(Sender(), name="b") as batch:
        batch.put(-1)
    assert not caplog.records


async def test_leaving_sends_what_is_left_and_then_takes_no_more() -> None:
    sender = Sender()
    async with Batch(sender, name="schedule jobs") as batch:
        futures = [batch.put(number) for number in range(5)]
    assert [future.result() for future in futures] == ["0", "1", "2", "3", "4"]
    with pytest.raises(RuntimeError, match="schedule jobs is closed"):
        batch.put(5)


async def test_leaving_finishes_sending_although_the_leaver_is_cancelled() -> None:
    sender = Sender()
    sender.open.clear()
    futures: list[asyncio.Future[str]] = []

    async def leave() -> None:
        async with Batch(sender, name="b") as batch:
            futures.append(batch.put(1))

    leaver = asyncio.create_task(leave())
    await sender.sending.wait()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    sender.open.set()
    assert await futures[0] == "1"


async def test_answers_of_the_wrong_number_are_an_error_for_their_callers_and_not_the_end() -> None:
    answers = [[], ["a"]]

    async def forget(items: list[int]) -> Sequence[str]:
        return answers.pop(0)

    async with Batch(forget, name="b") as batch, asyncio.timeout(20):
        with pytest.raises(ValueError, match="zip"):
            await batch(1)
        assert await batch(2) == "a"


async def test_nothing_to_send_sends_nothing() -> None:
    sender = Sender()
    async with Batch(sender, name="b"):
        pass
    assert sender.groups == []


class Gate:
    """Sends each group when that one is let."""

    def __init__(self) -> None:
        self.groups: dict[tuple[int, ...], asyncio.Future[None]] = {}
        self.changed = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[str]:
        let = self.groups[tuple(items)] = asyncio.get_running_loop().create_future()
        self.changed.set()
        await let
        return [str(item) for item in items]

    async def until(self, *groups: tuple[int, ...]) -> None:
        """Wait until just these were begun."""
        async with asyncio.timeout(20):
            while len(self.groups) < len(groups):
                self.changed.clear()
                await self.changed.wait()
        await turns()
        assert tuple(self.groups) == groups

    def let(self, *items: int) -> None:
        self.groups[items].set_result(None)


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_second_group_goes_beside_the_first_once_it_is_half_as_large_and_no_third() -> None:
    gate = Gate()
    async with Batch(gate, name="b", overlap=True) as batch:
        first = [batch.put(number) for number in (1, 2, 3)]
        await gate.until((1, 2, 3))
        second = [batch.put(4)]
        await turns()
        assert tuple(gate.groups) == ((1, 2, 3),), "it is too small"
        second.append(batch.put(5))
        await gate.until((1, 2, 3), (4, 5))
        third = [batch.put(number) for number in (6, 7, 8)]
        await turns()
        assert tuple(gate.groups) == ((1, 2, 3), (4, 5))
        gate.let(4, 5)
        assert await asyncio.gather(*second) == ["4", "5"]
        assert not any(future.done() for future in first)
        await gate.until((1, 2, 3), (4, 5), (6, 7, 8))
        gate.let(1, 2, 3)
        assert await asyncio.gather(*first) == ["1", "2", "3"]
        gate.let(6, 7, 8)
        assert await asyncio.gather(*third) == ["6", "7", "8"]


async def test_what_is_too_small_goes_when_the_first_group_has_ended() -> None:
    gate = Gate()
    async with Batch(gate, name="b", overlap=True) as batch:
        first = [batch.put(number) for number in (1, 2, 3)]
        await gate.until((1, 2, 3))
        last = batch.put(4)
        gate.let(1, 2, 3)
        await gate.until((1, 2, 3), (4,))
        gate.let(4)
        assert await asyncio.gather(*first, last) == ["1", "2", "3", "4"]


async def test_leaving_waits_for_both_groups_and_sends_what_is_left() -> None:
    gate = Gate()

    async def go_on() -> None:
        for group in ((1,), (2,), (3, 4)):
            while group not in gate.groups:
                await asyncio.sleep(0)
            gate.let(*group)
            await turns()

    async with Batch(gate, name="b", overlap=True) as batch:
        futures = [batch.put(1)]
        await gate.until((1,))
        futures.append(batch.put(2))
        await gate.until((1,), (2,))
        futures += [batch.put(3), batch.put(4)]
        going_on = asyncio.create_task(go_on())
    assert [future.result() for future in futures] == ["1", "2", "3", "4"]
    await going_on


async def test_an_error_of_one_of_two_groups_is_not_the_others() -> None:
    sender = Sender()
    sender.open.clear()
    async with Batch(sender, name="b", overlap=True) as batch:
        fine = batch.put(1)
        await sender.sending.wait()
        doomed = batch.put(-2)
        while len(sender.groups) < 2:
            await asyncio.sleep(0)
        sender.open.set()
        assert await fine == "1"
        with pytest.raises(ValueError, match="-2"):
            await doomed
        assert await batch(3) == "3"


async def test_nothing_can_be_put_before_it_is_open() -> None:
    batch = Batch(Sender(), name="schedule jobs")
    with pytest.raises(RuntimeError, match="schedule jobs is not open"):
        batch.put(1)
