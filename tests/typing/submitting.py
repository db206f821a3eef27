"""Type checkers know submissions: arguments as the function declares them, results as it returns them."""

from datetime import UTC, datetime, timedelta
from typing import assert_type
from uuid import UUID

from cplane import ControlPlane, Handle, State, job


@job
async def add(x: int, y: int = 2, *, label: str = "") -> int:
    return x + y


@job(queue="slow", timeout=5, retries=2)
async def shout(text: str) -> list[str]:
    return [text.upper()]


@job
def square(x: float) -> float:
    return x * x


@job()
def nothing() -> None: ...


async def results() -> None:
    assert_type(await add.submit(1), Handle[int])
    assert_type(await add.submit(1, y=2, label="a"), Handle[int])
    assert_type(await add.delay(1, 2), Handle[int])
    assert_type(await add.using(delay=30).submit(x=1), Handle[int])
    assert_type(await add.using(key="k").delay(1), Handle[int])
    assert_type(await add.submit_many([{"x": 1}, {"x": 2}]), list[Handle[int]])
    assert_type(await add.using(queue="q").submit_many([{"x": 1}]), list[Handle[int]])
    assert_type(await shout.submit("a"), Handle[list[str]])
    assert_type(await square.submit(1.5), Handle[float])
    assert_type(await nothing.submit(), Handle[None])

    handle = await add.submit(1)
    assert_type(await handle.result(), int)
    assert_type(await handle.result(timeout=5), int)
    assert_type(await handle.state(), State)
    assert_type(await handle.cancel(), State)
    assert_type(handle.id, UUID)
    assert_type(await (await shout.submit("a")).result(), list[str])
    assert_type(await (await square.submit(2)).result(), float)

    text: str = await handle.result()  # error
    await handle.result("soon")  # error
    wrong: Handle[str] = await add.submit(1)  # error
    many: list[Handle[str]] = await add.submit_many([{"x": 1}])  # error
    _ = text, wrong, many


async def arguments() -> None:
    await add.submit("1")  # error
    await add.submit()  # error
    await add.submit(1, 2, "label")  # error
    await add.submit(1, z=3)  # error
    await add.submit(1, label=3)  # error
    await add.submit(1, x=1)  # error
    await add.delay(x="1")  # error
    await add.using(delay=1).submit(None)  # error
    await add.using(delay=1).delay(1, 2, 3)  # error
    await shout.submit(["a"])  # error
    await square.submit("2")  # error
    await nothing.submit(1)  # error
    await add.submit_many([1, 2])  # error
    await add.submit_many({"x": 1})  # error
    await add.submit(1, delay=30)  # error


async def options() -> None:
    add.using(delay=1.5)
    add.using(delay=timedelta(minutes=1), key="k", queue="q")
    add.using(at=datetime.now(UTC))
    add.using(timeout=5)
    add.using(delay="30")  # error
    add.using(timeout="5")  # error
    add.using(at="tomorrow")  # error
    add.using(at=30)  # error
    add.using(key=1)  # error
    add.using(queue=["q"])  # error
    add.using(30)  # error
    add.using(retries=3)  # error


async def direct_calls() -> None:
    assert_type(await add(1, 2), int)
    assert_type(await shout("a"), list[str])
    assert_type(square(2), float)
    nothing()
    await add("1")  # error
    await add(1, label=2)  # error
    await square(2)  # error
    square("2")  # error
    coroutine: int = add(1)  # error
    _ = coroutine


async def in_a_plane() -> None:
    async with ControlPlane() as plane:
        assert_type(plane, ControlPlane)
        assert_type(await plane.cancel((await add.submit(1)).id), State)
        await plane.cancel("an id")  # error
        await plane.create_job("add", args={"x": 1}, delay=3)
        await plane.create_job("add", args={"x": object()})  # error
