"""The errors of jobs as text."""

import asyncio
import os
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from cplane.errors import EgressBlocked
from cplane.runtime.error_text import (
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    MAX_TYPE_CHARS,
    READ_S,
    describe,
    read_error,
)

LIMIT_S = 3.0


def raised(make: Callable[[], BaseException]) -> BaseException:
    try:
        raise make()
    except BaseException as error:
        return error


def chained(count: int, message: str) -> BaseException:
    error = ValueError(message)
    for _ in range(count):
        later = ValueError(message)
        later.__cause__ = error
        error = later
    return error


def nested_groups(depth: int, width: int) -> BaseException:
    errors: list[Exception] = [ValueError("at the bottom")]
    for _ in range(depth):
        errors = [ExceptionGroup("group", errors * width)]
    return errors[0]


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Recursive(Exception):
    def __str__(self) -> str:
        return str(self)


class NotText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # noqa: PLE0307  on purpose


def test_an_error_has_its_type_its_message_and_the_traceback_of_the_jobs_own_code() -> None:
    described = describe(raised(lambda: KeyError("gone")))
    assert (described.type, described.message) == ("KeyError", "'gone'")
    assert described.traceback.startswith("Traceback (most recent call last):\n")
    assert described.traceback.endswith("KeyError: 'gone'\n")
    assert describe(EgressBlocked("no", hint="allow it")).message == "no (allow it)"
    assert describe(Silent()).type == "tests.runtime.test_error_text.Silent"


@pytest.mark.parametrize("text", [os.fsdecode(b"cannot read caf\xe9"), "a\0b", "\ud83d" * 100_000])
def test_text_that_no_store_takes_is_escaped(text: str) -> None:
    error = ValueError(text)
    error.add_note(text)
    described = describe(type("Bad", (Exception,), {"__module__": text})(text))
    for part in (*msgspec.structs.astuple(describe(raised(lambda: error))), *msgspec.structs.astuple(described)):
        assert "\0" not in part
        part.encode()
    assert describe(ValueError(os.fsdecode(b"caf\xe9"))).message == "caf\\udce9"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("x" * 5_000_000),
        lambda: KeyError("x" * 1_000_000),
        lambda: ValueError(["x"] * 3_000_000),
        lambda: ValueError(b"x" * 20_000_000, "and more"),
        lambda: ValueError(*range(100_000)),
        lambda: chained(5_000, "cause"),
        lambda: chained(10, "x" * 1_000_000),
        lambda: nested_groups(10, 15),
        lambda: ExceptionGroup("wide", [ValueError(str(n)) for n in range(20_000)]),
        lambda: type("X" * 1_000_000, (Exception,), {})("long name"),
        Silent,
        Recursive,
        NotText,
    ],
)  # fmt: skip
async def test_every_error_is_short_and_quickly_read(make: Callable[[], BaseException]) -> None:
    error = raised(make)
    began = time.perf_counter()
    described = await read_error(error)
    assert time.perf_counter() - began < LIMIT_S
    assert 0 < len(described.type) <= MAX_TYPE_CHARS
    assert len(described.message) <= MAX_MESSAGE_CHARS
    assert len(described.traceback) <= MAX_TRACEBACK_CHARS + 10
    assert described.traceback.startswith("Traceback (most recent call last)") or "Group" in described.traceback


async def test_causes_and_groups_of_usual_size_are_shown() -> None:
    described = await read_error(
        raised(lambda: BaseExceptionGroup("two", [chained(1, "the cause"), KeyError("other")]))
    )
    assert described.message == "two (2 sub-exceptions)"
    assert described.traceback.count("ValueError: the cause") == 2
    assert "The above exception was the direct cause" in described.traceback
    assert "KeyError: 'other'" in described.traceback


def test_deep_recursion_shows_the_last_frames() -> None:
    def descend(depth: int) -> None:
        if depth:
            descend(depth - 1)
        raise ValueError("at the bottom")

    with pytest.raises(ValueError, match="at the bottom") as caught:
        descend(700)
    described = describe(caught.value)
    assert described.traceback.endswith("ValueError: at the bottom\n")
    assert len(described.traceback) < MAX_TRACEBACK_CHARS + 10


async def test_a_message_that_takes_long_is_not_waited_for() -> None:
    going_on = threading.Event()

    class Slow(Exception):
        def __str__(self) -> str:
            going_on.wait(60)
            return "late"

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    described = await read_error(Slow())
    assert time.perf_counter() - began < READ_S + LIMIT_S
    assert described.type.endswith("<locals>.Slow")
    assert described.message == "(its message could not be read within 1 s)"
    assert ticks > 5
    going_on.set()
    ticking.cancel()
