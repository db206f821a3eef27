"""The fast path of uvicorn's protocol: one write for each response, one idle timer for each connection."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from cplane import ControlPlane
from cplane.web import create_app, open_server
from cplane.web.uvicorn import FLUSH_THRESHOLD_BYTES, CoalescingTransport, IdleTimer


class Recording(asyncio.Transport):
    """Records what is sent, call by call."""

    def __init__(self) -> None:
        super().__init__({"peername": ("::1", 7)})
        self.calls: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("closed")


async def test_writes_of_one_loop_iteration_are_sent_in_one_call() -> None:
    transport = Recording()
    coalescing = CoalescingTransport(transport, asyncio.get_running_loop())
    assert coalescing.get_extra_info("peername") == ("::1", 7)
    coalescing.write(b"head ")
    coalescing.write(b"body")
    assert transport.calls == []
    await asyncio.sleep(0)
    coalescing.write(b"next")
    coalescing.write(large := b"x" * FLUSH_THRESHOLD_BYTES)
    assert transport.calls == [b"head body", b"next" + large], (
        "a large write is not delayed, so that backpressure works"
    )
    coalescing.write(b"last")
    coalescing.close()
    await asyncio.sleep(0)
    assert transport.calls[2:] == [b"last", "closed"]


async def timer(seconds: float) -> None:
    fired = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, fired.set)
    await fired.wait()


async def test_an_idle_timer_fires_after_the_last_delay() -> None:
    loop = asyncio.get_running_loop()
    idle_timer, fired = IdleTimer(loop), asyncio.Event()
    idle_timer.call_later(0.01, fired.set).cancel()  # the next request arrived
    earliest = loop.time() + 0.05
    idle_timer.call_later(0.05, fired.set)  # and got its response
    await fired.wait()
    assert loop.time() >= earliest


async def test_a_cancelled_idle_timer_does_not_fire() -> None:
    idle_timer, fired = IdleTimer(asyncio.get_running_loop()), asyncio.Event()
    idle_timer.call_later(0.01, fired.set).cancel()
    await timer(0.03)
    assert not fired.is_set()
    idle_timer.call_later(0.01, fired.set)
    await fired.wait()


async def test_many_responses_of_a_connection_need_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    call_at: Any = loop.call_at

    def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return cast("asyncio.TimerHandle", call_at(*args, **kwargs))

    monkeypatch.setattr(loop, "call_at", counted)
    idle_timer = IdleTimer(loop)
    for _ in range(100):
        idle_timer.call_later(60.0, pytest.fail).cancel()
    assert timers == 1


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_later = IdleTimer.call_later

    def soon(self: IdleTimer, _: float, close: Callable[[], object]) -> IdleTimer:
        return call_later(self, 0.2, close)

    monkeypatch.setattr(IdleTimer, "call_later", soon)
    async with open_server(create_app(plane=plane), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        for _ in range(3):
            writer.write(b"OPTIONS /livez HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            await timer(0.1)
        async with asyncio.timeout(10):
            await reader.read()  # until the server closes
        writer.close()
