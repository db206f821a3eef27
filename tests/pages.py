"""A tiny HTTP server for pages of tests, and pages that harm whoever opens them."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

MIB = 1 << 20

ALLOCATING = "<script>const all = []; setInterval(() => all.push(new Uint8Array(8e6).fill(1)), 20)</script>"
OPENING = "<script>onload = () => { for (let i = 0; i < %d; i++) open('about:blank') }</script>"
SPINNING = "<title>Spinning</title><script>onload = () => setTimeout(() => { for (;;); }, 0)</script>"
LINKS = (
    "<title>Many</title><script>document.write(Array.from({length: %d},"
    " (_, i) => `<div><a href='http://a.example/${i}'>${i}</a></div>`).join(''))</script>"
)
"""Two elements for each link."""


def hostile(lines: int = 30_000) -> str:
    """Return a small page that takes long to convert to Markdown: each of 150 levels copies and indents all lines.

    30,000 lines, 150 kB, take 7 to 20 s; 200,000 take more than a minute.
    """
    return "<blockquote>" * 150 + "x<br>" * lines


@dataclass(frozen=True)
class Response:
    """What the server returns for a path."""

    body: bytes
    status: str = "200 OK"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def encode(self) -> bytes:
        fields = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + self.body


def page(html: str) -> Response:
    return Response(html.encode())


@cache
def bomb(unpacked_mb: int) -> Response:
    """Return a page that is a thousand times as large when it is unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(b"<p>" + b"a" * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    mebibyte = packer.compress(b"<p>" + b"a" * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    return Response(first + mebibyte * unpacked_mb, headers={"Content-Encoding": "gzip"})


@asynccontextmanager
async def serve(respond: Callable[[str], Response]) -> AsyncGenerator[str]:
    """Serve what `respond` returns for a path, on a loopback port.

    Yields:
        The URL of the server, without a slash at its end.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            writer.write(respond(path).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
