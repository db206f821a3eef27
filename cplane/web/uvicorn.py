"""uvicorn's HTTP protocol with less work for each answer: one call of the system to send it, and no timer of its own."""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Self, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TOGETHER_BYTES = 65_536
"""What is written is sent at once when it is more than this."""


class CoalescingTransport:
    """A transport that sends what is written in one turn of the loop as one.

    uvicorn writes the head of an answer and its body apart, and a call of the system costs a good part of a whole answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_closing = transport.is_closing  # not looked up below: it is asked for with each answer
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Send it when this turn is over; a large part at once, so that whoever writes hears when the client cannot follow."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > TOGETHER_BYTES:
            self._flush()

    def close(self) -> None:
        """Send what is left, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class IdleTimer:
    """What a connection of uvicorn has for a loop: the timer it sets after each answer, and cancels when a request comes, is one that is kept.

    When it rings it looks whether the connection has been idle for so long, and else rings again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_task = loop.create_task  # not looked up below: it is asked for with each request
        self._loop = loop
        self._due = math.inf
        self._close: Callable[[], object] | None = None
        self._rings: asyncio.TimerHandle | None = None

    def call_later(self, delay: float, close: Callable[[], object]) -> Self:
        """Call `close` in so many seconds, if `cancel` is not called before."""
        self._due = self._loop.time() + delay
        self._close = close
        if self._rings is None:
            self._rings = self._loop.call_at(self._due, self._ring)
        return self

    def cancel(self) -> None:
        """The connection is not idle."""
        self._due = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def _ring(self) -> None:
        self._rings = None
        if self._close is not None and self._due <= self._loop.time():
            self._close()
        elif self._due < math.inf:
            self._rings = self._loop.call_at(self._due, self._ring)


class Protocol(HttpToolsProtocol):
    """uvicorn's own, on a transport and with a timer of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = cast("asyncio.AbstractEventLoop", IdleTimer(self.loop))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        together: Any = CoalescingTransport(cast("asyncio.Transport", transport), asyncio.get_running_loop())
        super().connection_made(together)
