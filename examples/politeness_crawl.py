"""Crawl a site without being a burden: at most two pages at once, and five starts a second, over all workers.

Jobs that wait for their turn are in the queue and hold no page. A site that answers 429 or 503 with Retry-After gets no
requests for that long. Run it in two terminals; without a URL it crawls a small site that it serves itself:

    $ cplane dev examples/politeness_crawl.py
    $ python examples/politeness_crawl.py
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urldefrag, urlsplit

from playwright.async_api import Page
from pydantic import HttpUrl

from cplane import ControlPlane, JobFailed, PerHost, job, retry_after

MAX_PAGES = 50
LIMIT = PerHost(concurrency=2, rate=5.0)


@job(queue="browser", timeout=60, retries=2, per_host=LIMIT)
async def links(page: Page, url: HttpUrl) -> list[str]:
    """The addresses that a page links to."""
    response = await page.goto(str(url))
    if response is not None:
        retry_after.check(response.status, response.headers.get("retry-after"), str(url))
    found: list[str] = await page.locator("a[href]").evaluate_all("links => links.map(link => link.href)")
    return found


async def crawl(start: str) -> set[str]:
    """Follow the links of one host, level by level. Returns the pages that were opened."""
    seen, level = {start}, [start]
    while level:
        handles = await links.submit_many({"url": url} for url in level)
        results = await asyncio.gather(*(handle.result(timeout=120) for handle in handles), return_exceptions=True)
        found: list[str] = []
        for url, result in zip(level, results, strict=True):
            if isinstance(result, JobFailed):
                print(f"{url}: {result.error_message}")
            elif isinstance(result, BaseException):
                raise result
            else:
                found += [urldefrag(link).url for link in result]
        here = dict.fromkeys(url for url in found if urlsplit(url).netloc == urlsplit(start).netloc)
        level = [url for url in here if url not in seen][: MAX_PAGES - len(seen)]
        seen.update(level)
    return seen


@asynccontextmanager
async def small_site() -> AsyncGenerator[str]:
    """A site of seven pages on this machine. Yields its address."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int("0" + (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().strip("/"))
        body = "".join(f'<a href="/{n}">{n}</a>' for n in (2 * number + 1, 2 * number + 2) if n < 7)
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def main() -> None:
    """Crawl the URL of the command line, or the small site."""
    async with ControlPlane(), small_site() as address:
        began = time.monotonic()
        pages = await crawl(sys.argv[1] if len(sys.argv) > 1 else address)
        print("\n".join(sorted(pages)))
        print(f"{len(pages)} pages in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
