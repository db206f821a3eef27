"""The page that all ways visit: some text and one style sheet, served on loopback by a separate process."""

import asyncio
import sys

TEXT = "".join(f"<section><h2>Part {n}</h2><p>{'words and more words, ' * 5}</p></section>" for n in range(5))
PAGE = f"<!doctype html><title>Bench</title><link rel=stylesheet href=/style.css><h1>Bench</h1>{TEXT}"
STYLE = "body { font: 16px sans-serif; margin: 2em } section { border-top: 1px solid #ccc } h2 { color: #246 }"
FILES = {"/": ("text/html", PAGE.encode()), "/style.css": ("text/css", STYLE.encode())}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve the requests of one keep-alive connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            media_type, body = FILES.get(head.split(b" ", 2)[1].decode(), ("text/plain", b""))
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


async def main() -> None:
    """Serve until stdin is closed. The first line of output is the URL."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        print(f"http://{host}:{port}/", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
