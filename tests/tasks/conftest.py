"""Fixtures: a site that records its requests, a real browser pool, and a context that stores artifacts in a folder."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane import Artifact, Context
from cplane.browser import BrowserPool
from cplane.errors import ArtifactNotFound
from cplane.jobs.context import Progress

HOME = """<!doctype html><title>Home</title>
<style>body { margin: 0 } .box { position: absolute; left: 10px; top: 20px; width: 30px; height: 40px }</style>
<h1 class="title" data-kind="main">Hello <b>you</b></h1>
<div class="box">boxed</div>
<a href="/about">About</a> <a href="about"><img alt="again"></a> <a href="https://other.example/x?y=1#z">Other</a>
<a href="/hidden" style="display: none">Hidden</a> <a href="mailto:me@example.com">Mail</a> <a href="javascript:1">No</a>
<a name="anchor">No link</a>
"""
SCRIPTED = (
    "<!doctype html><title>Before</title><script>document.title = 'After'; document.write('<p>' + 6 * 7)</script>"
)
TALL = "<!doctype html><title>Tall</title><style>body { margin: 0; height: 3000px; background: #0a0 }</style>"
ASSETS = "<!doctype html><title>Assets</title><link rel=stylesheet href=/style.css><img src=/image.png><p>styled</p>"
ARTICLE = (
    "<!doctype html><title>Article</title><nav>Menu</nav><main><h1>News</h1><p>Some <b>bold</b> <a href=/x>link</a></p>"
    "<ul><li>one<li>two</ul></main><script>var hidden</script><footer>Imprint</footer>"
)
FAULTY = "<!doctype html><title>Faulty</title><p>broken</p><img src=/gone.png><script>console.error('oh no')</script>"
DIALOGS = (
    "<!doctype html><script>alert(1); document.title = confirm(2) + ' ' + prompt(3); onbeforeunload = () => 'stay';"
    "open('about:blank')</script>"
)
HUGE = "<!doctype html><title>Huge</title><!--100 MB--><p>end"
BIG = f"<!doctype html><title>Big</title><p>{'x' * 300_000}</p>"
HTML = "text/html; charset=utf-8"
NOTHING = b"<title>Nothing</title>"
CREDENTIALS = "Basic " + base64.b64encode(b"me:secret").decode()
PAGES = {
    "/": (HTML, HOME),
    "/scripted": (HTML, SCRIPTED),
    "/tall": (HTML, TALL),
    "/assets": (HTML, ASSETS),
    "/big": (HTML, BIG),
    "/huge": (HTML, HUGE),
    "/private": (HTML, "<title>Private</title>"),
    "/article": (HTML, ARTICLE),
    "/faulty": (HTML, FAULTY),
    "/dialogs": (HTML, DIALOGS),
    "/style.css": ("text/css", "p { color: rgb(1, 2, 3) }"),
}


@dataclass
class Request:
    """A request that the site received."""

    path: str
    headers: dict[str, str]


@dataclass
class Site:
    """The URL of the site and the requests that it has received."""

    url: str
    requests: list[Request] = field(default_factory=list[Request])

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def respond(self, request: Request) -> tuple[str, dict[str, str], bytes]:
        self.requests.append(request)
        match request.path:
            case "/echo":
                return "200 OK", {"Content-Type": "application/json"}, json.dumps(request.headers).encode()
            case "/redirect":
                return "302 Found", {"Location": "/"}, b""
            case "/loop":
                return "302 Found", {"Location": "/loop"}, b""
            case "/file":
                disposition = 'attachment; filename="../my report.csv"'
                return "200 OK", {"Content-Type": "text/csv", "Content-Disposition": disposition}, b"a,b\n" * 1000
            case "/private" if request.headers.get("authorization") != CREDENTIALS:
                return "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="site"'}, b"no"
            case path:
                media_type, body = PAGES.get(path, ("", ""))
                body = body.replace("100 MB", "x" * 100_000_000) if body is HUGE else body
                return (
                    "200 OK" if body else "404 Not Found",
                    {"Content-Type": media_type or HTML},
                    body.encode() or NOTHING,
                )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            status, response_headers, body = self.respond(Request(head[0].split()[1], headers))
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in response_headers.items())]
            writer.write(
                "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]).encode() + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    site = Site("")
    async with await asyncio.start_server(site.serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        site.url = f"http://{host}:{port}"
        yield site


@pytest.fixture
async def pool() -> AsyncGenerator[BrowserPool]:
    async with BrowserPool(1) as pool:
        yield pool


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A context as a worker creates it, whose artifacts are files in `tmp_path`."""

    async def store_artifact(name: str, data: bytes | AsyncIterator[bytes], media_type: str | None) -> Artifact:
        content = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        await asyncio.to_thread((tmp_path / name).write_bytes, content)
        return Artifact(name=name, media_type=media_type or "", size=len(content), sha256=sha256(content).hexdigest())

    async def read_artifact(job: UUID, name: str, max_bytes: int) -> tuple[Artifact, bytes]:
        if not (tmp_path / name).exists():
            raise ArtifactNotFound(f"the record has no artifact '{name}'")
        content = await asyncio.to_thread((tmp_path / name).read_bytes)
        return Artifact(name=name, media_type="text/csv", size=len(content), sha256=""), content

    def report_progress(progress: Progress) -> None:
        return

    def transaction() -> AbstractAsyncContextManager[AsyncSession]:
        raise NotImplementedError

    log: Any = structlog.get_logger()
    return Context(
        id=uuid4(),
        key="test",
        job="test",
        attempt=1,
        log=log,
        report_progress=report_progress,
        store_artifact=store_artifact,
        read_artifact=read_artifact,
        transaction=transaction,
    )
