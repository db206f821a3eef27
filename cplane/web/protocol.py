"""HTTP of a connection: uvicorn's protocol on our fast path, with limits for clients that have shown no key yet.

What is limited here arrives before the app sees a request: heads that are too large, do not end, or do not begin;
requests that are sent before the response to the first; connections of one address.
"""

import asyncio
from collections import Counter
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cplane.web.uvicorn import CoalescingTransport, IdleTimer

HEAD_MAX_BYTES = 64 * 1024
"""Largest request line with headers, about: what a transport reads at once, 256 KiB at most, is always parsed."""

HEAD_TIMEOUT_S = 10.0
"""Time from the connection, or from the first byte of a later request, to the end of its head."""

PIPELINE_MAX = 64
"""Requests of a connection that wait for the response to an earlier one."""

PIPELINE_MAX_BYTES = 512 * 1024
"""Bytes that arrive while requests wait so."""

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 36\r\nconnection: close\r\n\r\nthe head of the request is too large"
)


class ConnectionCount:
    """How many connections each client address has.

    Args:
        limit: connections that one address may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a connection; returns False if its address has as many as it may have."""
        if self._open[address] >= self._limit:
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Uncount a connection that has ended."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class RefusedRequestError(Exception):
    """Raised in the parser: the request is over a limit."""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on a `CoalescingTransport`, with an `IdleTimer` as its loop, and with limits.

    Args:
        count: counts the connections of the server; None: there is no limit.
    """

    def __init__(self, *args: Any, count: ConnectionCount | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = cast("asyncio.AbstractEventLoop", IdleTimer(self.loop))
        self._count = count
        self._address: str | None = None
        """The address that this connection is counted for."""
        self._in_head = False
        self._head_bytes = 0
        """Bytes of the head that began in an earlier chunk."""
        self._chunk_bytes = 0
        self._pipelined_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport of a new connection, or abort the connection if its address has too many."""
        plain = cast("asyncio.Transport", transport)
        coalescing: Any = CoalescingTransport(plain, asyncio.get_running_loop())
        super().connection_made(coalescing)
        address = self.client[0] if self.client else None
        if self._count is not None and address is not None:
            if not self._count.enter(address):
                plain.abort()
                return
            self._address = address
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Uncount the connection."""
        self._unwatch_head()
        if self._count is not None and self._address is not None:
            self._count.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a chunk, unless the connection is being closed."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._chunk_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        if self.pipeline:
            self._pipelined_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._refusal is None:
            if self._head_bytes > HEAD_MAX_BYTES:
                self._refuse(TOO_LARGE)
            elif self._head_timer is None:
                self._watch_head()

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Check the head, and how many requests wait."""
        self._in_head = False
        self._unwatch_head()
        if self._chunk_bytes + self._head_bytes > HEAD_MAX_BYTES:  # otherwise it cannot be larger
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_MAX_BYTES:
                self._refusal = TOO_LARGE
                raise RefusedRequestError
        if self.pipeline:
            if len(self.pipeline) >= PIPELINE_MAX or self._pipelined_bytes > PIPELINE_MAX_BYTES:
                self._refusal = b""
                raise RefusedRequestError
        else:
            self._pipelined_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Respond to what the parser refused."""
        if self._refusal is None:
            super().send_400_response(msg)
        else:
            self._refuse(self._refusal)

    def _refuse(self, response: bytes) -> None:
        self._refusal = response
        if response and getattr(self.cycle, "response_complete", True):  # there is no cycle before the first request
            self.transport.write(response)
        self.transport.close()

    def _watch_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, self._close)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        self.transport.close()
