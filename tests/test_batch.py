"""Natural batching: what gathers while one call is under way goes together in the next."""

import asyncio
from collections.abc import Sequence

import pytest

from cplane.batch import Batch


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


async def test_what_follows_a_group_is_waited_for_while_the_next_is_sent() -> None:
    sender, followed, go_on = Sender(), list[tuple[list[int], list[str]]](), asyncio.Event()

    async def follow(items: list[int], answers: Sequence[str]) -> None:
        await go_on.wait()
        followed.append((items, list(answers)))
        if 3 in items:
            raise LookupError("afterwards")

    async with Batch(sender, name="b", then=follow) as batch:
        first = batch.put(1)
        await sender.sending.wait()
        sender.sending.clear()
        second, third = batch.put(2), batch.put(3)
        await sender.sending.wait()
        assert not first.done()
        assert followed == []
        go_on.set()
        assert await first == "1"
        for doomed in (second, third):
            with pytest.raises(LookupError, match="afterwards"):
                await doomed
        go_on.clear()
        last = batch.put(4)
        asyncio.get_running_loop().call_later(0.01, go_on.set)
    assert last.result() == "4", "leaving waits for what follows"
    assert sorted(followed) == [([1], ["1"]), ([2, 3], ["2", "3"]), ([4], ["4"])]


async def test_nothing_can_be_put_before_it_is_open() -> None:
    batch = Batch(Sender(), name="schedule jobs")
    with pytest.raises(RuntimeError, match="schedule jobs is not open"):
        batch.put(1)
