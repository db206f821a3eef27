"""Traffic other than ordinary requests does not bypass the gate. Without a gate, the same page reaches every trap."""

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
ALL_WAYS = {"turn", "prefetch", "speculation", "ping", "udp", "request"}


@dataclass
class Traps(asyncio.DatagramProtocol):
    """A TCP and a UDP port outside of every gate, and the kinds of traffic that reached them."""

    reached: set[str] = field(default_factory=set[str])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def record(self, way: str) -> None:
        self.reached.add(way)
        self.changed.set()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.record("udp")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await reader.read(2000)
            if data.startswith((b"GET /", b"POST /")):
                self.record(data.split(b" ", 2)[1].decode().strip("/"))
            elif data:
                self.record("turn")
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def wait_for(self, ways: set[str]) -> None:
        async with asyncio.timeout(30):
            while not ways <= self.reached:
                self.changed.clear()
                await self.changed.wait()


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
    """The outcome of a request that Playwright's driver makes itself, without the browser."""
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


async def test_traffic_other_than_ordinary_requests_does_not_bypass_the_gate() -> None:
    async with trapped() as (traps, tcp, udp), opened(PageOptions()) as (page, internet):
        await page.goto("http://localhost/")
        running = asyncio.create_task(page.evaluate(WAYS, [tcp, udp]))
        assert "NotAllowed" in await request(page, f"http://127.0.0.1:{tcp}/request")
        await page.wait_for_function("() => Boolean(window.over)")
        async with trapped() as (control, its_tcp, its_udp), opened(PageOptions(egress="any")) as (free, free_internet):
            await free.goto(f"http://127.0.0.1:{free_internet.servers['127.0.0.1', 80]}/")
            without = asyncio.create_task(free.evaluate(WAYS, [its_tcp, its_udp]))
            await request(free, f"http://127.0.0.1:{its_tcp}/request")
            await control.wait_for(ALL_WAYS)  # the page behind the gate had at least as much time as the control
            await free.evaluate("window.over()")
            await without
        await page.evaluate("window.over()")
        await running
        assert traps.reached == set()
        assert {port for _, port in internet.dialled} == {80}


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "ws"])
async def test_urls_with_other_schemes_open_no_page(scheme: str) -> None:
    async with trapped() as (traps, tcp, _), opened(PageOptions()) as (page, _):
        with pytest.raises(PlaywrightError):
            await page.goto(f"{scheme}://127.0.0.1:{tcp}/x")
        assert traps.reached == set()
