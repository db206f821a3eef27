"""Tasks end even if they lose a cancellation, and their errors are not raised."""

import asyncio

from cplane.runtime.cancellation import cancel_all


async def test_a_task_that_loses_its_first_cancellation_still_ends() -> None:
    lost: list[str] = []

    async def loses_its_first() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.append("once")
        await asyncio.Event().wait()

    task = asyncio.create_task(loses_its_first())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_all([task])
    assert lost == ["once"]
    assert task.cancelled()


async def test_errors_of_ended_tasks_are_not_raised() -> None:
    async def fails() -> None:
        raise ValueError

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    await cancel_all([task])
    assert isinstance(task.exception(), ValueError)
