"""What never was an ordinary request: none of it goes past the gate. The same page without a gate springs every trap."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from cplane.browser import BrowserPool, PageOptions
from cplane.egress import EgressRules
from tests.egress.internet import Internet

WAYS = """
async ([tcp, udp]) => {
  const trap = path => `http://127.0.0.1:${tcp}/${path}`
  const element = (tag, attributes) => document.head.appendChild(Object.assign(document.createElement(tag), attributes))
  const turn = {urls: `turn:127.0.0.1:${tcp}?transport=tcp`, username: 'a', credential: 'b'}
  const peer = new RTCPeerConnection({iceServers: [turn]})
  peer.createDataChannel('x')
  peer.createOffer().then(offer => peer.setLocalDescription(offer))
  const transport = new WebTransport(`https://127.0.0.1:${udp}/`)
  transport.ready.catch(() => 0)
  transport.closed.catch(() => 0)
  element('link', {rel: 'preconnect', href: trap('')})
  element('link', {rel: 'prefetch', href: trap('prefetch')})
  element('script', {type: 'speculationrules', textContent: JSON.stringify({prefetch: [{source: 'list', urls: [trap('speculation')]}]})})
  const link = document.body.appendChild(Object.assign(document.createElement('a'), {href: '#', ping: trap('ping')}))
  link.click()
  await new Promise(resolve => { window.over = resolve })
}
"""
SPRUNG = {"turn", "prefetch", "speculation", "ping", "udp", "request"}


@dataclass
class Traps(asyncio.DatagramProtocol):
    """A TCP and a UDP port outside of every gate, and what came to them."""

    sprung: set[str] = field(default_factory=set[str])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def spring(self, way: str) -> None:
        self.sprung.add(way)
        self.news.set()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.spring("udp")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said = await reader.read(2000)
            if said.startswith((b"GET /", b"POST /")):
                self.spring(said.split(b" ", 2)[1].decode().strip("/"))
            elif said:
                self.spring("turn")
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def until(self, ways: set[str]) -> None:
        async with asyncio.timeout(30):
            while not ways <= self.sprung:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def trapped() -> AsyncGenerator[tuple[Traps, int, int]]:
    transport, traps = await asyncio.get_running_loop().create_datagram_endpoint(Traps, ("127.0.0.1", 0))
    try:
        async with await asyncio.start_server(traps.connected, "127.0.0.1", 0) as server:
            yield traps, server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def site(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = b"<!doctype html><title>Site</title><body>Hello"
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def request(page: Page, url: str) -> str:
    """What becomes of a request that Playwright's driver makes itself, past the browser."""
    try:
        return str((await page.request.get(url)).status)
    except PlaywrightError as error:
        return error.message


@asynccontextmanager
async def opened(options: PageOptions) -> AsyncGenerator[tuple[Page, Internet]]:
    internet = Internet()
    async with (
        internet.serve("localhost", "127.0.0.1", 80, site),  # a secure context
        internet.proxy(EgressRules.read(["localhost:80"])) as egress,
        BrowserPool(1, warm=0, egress=egress) as pool,
        pool.page(options) as page,
    ):
        yield page, internet


async def test_no_way_that_is_no_ordinary_request_goes_past_the_gate() -> None:
    async with trapped() as (traps, tcp, udp), opened(PageOptions()) as (page, internet):
        await page.goto("http://localhost/")
        running = asyncio.create_task(page.evaluate(WAYS, [tcp, udp]))
        assert "NotAllowed" in await request(page, f"http://127.0.0.1:{tcp}/request")
        await page.wait_for_function("() => Boolean(window.over)")
        async with trapped() as (control, its_tcp, its_udp), opened(PageOptions(egress="any")) as (free, free_internet):
            await free.goto(f"http://127.0.0.1:{free_internet.servers['127.0.0.1', 80]}/")
            without = asyncio.create_task(free.evaluate(WAYS, [its_tcp, its_udp]))
            await request(free, f"http://127.0.0.1:{its_tcp}/request")
            await control.until(SPRUNG)  # as long as the control takes, the page behind the gate has had as well
            await free.evaluate("window.over()")
            await without
        await page.evaluate("window.over()")
        await running
        assert traps.sprung == set()
        assert {port for _, port in internet.dialled} == {80}


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "ws"])
async def test_other_schemes_open_no_page(scheme: str) -> None:
    async with trapped() as (traps, tcp, _), opened(PageOptions()) as (page, _):
        with pytest.raises(PlaywrightError):
            await page.goto(f"{scheme}://127.0.0.1:{tcp}/x")
        assert traps.sprung == set()
