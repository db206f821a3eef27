"""Real pages behind the gate: by every kind of request, they reach public addresses only."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from cplane import ControlPlane, CplaneSettings, JobFailed, job
from cplane.browser import BrowserPool, PageLease, PageOptions, Proxy
from cplane.egress import EgressRules
from cplane.egress.rules import Address
from cplane.errors import EgressBlocked, HostUnreachable, InvalidArguments
from tests.egress.internet import Internet
from tests.workers import DEADLINE_S, running

INSIDE = ".inside.example"
WORKER = "self.addEventListener('install', () => { fetch('http://worker.inside.example/').catch(() => 0) })"
WAYS = """
async () => {
  const inside = (name, scheme = 'http') => `${scheme}://${name}.inside.example/`
  const element = (tag, attributes) => document.body.appendChild(Object.assign(document.createElement(tag), attributes))
  fetch(inside('fetch'), {mode: 'no-cors'}).catch(() => 0)
  fetch('/redirect?' + inside('redirect'), {mode: 'no-cors'}).catch(() => 0)
  new XMLHttpRequest().open('GET', inside('xhr'))
  const request = new XMLHttpRequest(); request.open('GET', inside('xhr')); request.send()
  navigator.sendBeacon(inside('beacon'), 'x')
  new EventSource(inside('events'))
  new WebSocket(inside('ws', 'ws'))
  new WebSocket(inside('wss', 'wss'))
  element('img', {src: inside('image')})
  element('script', {src: inside('script')})
  element('iframe', {src: inside('frame')})
  element('link', {rel: 'stylesheet', href: inside('style')})
  element('video', {src: inside('video')}).load()
  element('form', {method: 'post', action: inside('form'), target: element('iframe', {name: 'f'}).name}).submit()
  window.open(inside('popup'))
  element('a', {href: inside('download'), download: 'x', target: '_blank'}).click()
  await navigator.serviceWorker.register('/worker.js').catch(() => 0)
}
"""
EXPECTED = {
    "fetch", "redirect", "xhr", "beacon", "events", "ws", "wss", "image", "script", "frame", "style", "video", "form", "popup",
    "download", "worker",
}  # fmt: skip


@dataclass
class Web(Internet):
    """A site at localhost, which is a secure context, and a server inside the network that no page may reach."""

    hits: list[str] = field(default_factory=list[str])

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        return [ip_address("10.0.0.1")] if host.endswith(INSIDE) else await super().resolve(host, port)

    async def inside(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits.append((await reader.readline()).decode())
        writer.close()

    async def site(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
            self.hits.append(path)
            body, kind, status = "<!doctype html><title>Site</title><h1>Hello</h1>", "text/html", "200 OK"
            if path == "/worker.js":
                body, kind = WORKER, "text/javascript"
            location = f"Location: {path.partition('?')[2]}\r\n" if path.startswith("/redirect?") else ""
            if location:
                status = "302 Found"
            head = f"HTTP/1.1 {status}\r\n{location}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write((head + body).encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def web() -> AsyncGenerator[Web]:
    web = Web()
    async with (
        web.serve("localhost", "127.0.0.1", 80, web.site),
        web.serve("public.example", "1.1.1.1", 80, web.site),
        web.serve("x" + INSIDE, "10.0.0.1", 80, web.inside),
        web.serve("x" + INSIDE, "10.0.0.1", 443, web.inside),
    ):
        yield web


@pytest.fixture
async def pool(web: Web) -> AsyncGenerator[BrowserPool]:
    async with web.proxy(EgressRules.read(["localhost"])) as egress, BrowserPool(2, warm=1, egress=egress) as pool:
        yield pool


async def blocked(lease: PageLease, expected: set[str]) -> set[str]:
    """The refused hosts of the network, once they include those expected."""
    assert lease.gate is not None
    found: set[str] = set()
    try:
        async with asyncio.timeout(20):
            while not expected <= (found := {b.host.removesuffix(INSIDE) for b in lease.gate.blocked}):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    return found


async def test_no_kind_of_request_of_a_page_reaches_the_network_inside(pool: BrowserPool, web: Web) -> None:
    lease = await pool.acquire_page(PageOptions(accept_downloads=True))
    await lease.page.goto("http://localhost/")
    await lease.page.evaluate(WAYS)
    assert await blocked(lease, EXPECTED) == EXPECTED
    assert not [hit for hit in web.hits if not hit.startswith("/")]
    assert not any(address == "10.0.0.1" for address, _ in web.dialled)
    lease.release()


async def test_public_hosts_are_reached_and_a_refusal_names_host_and_rule(pool: BrowserPool, web: Web) -> None:
    async with pool.page() as page:
        response = await page.goto("http://public.example/")
        assert response is not None
        assert response.status == 200
    for url in ("http://nav.inside.example/", "http://public.example/redirect?http://nav.inside.example/"):
        with pytest.raises(
            EgressBlocked, match=r"nav\.inside\.example:80 was not reached: 10\.0\.0\.1 is a private address"
        ):
            async with pool.page() as page:
                await page.goto(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://0177.1/",
        "http://127.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "https://10.0.0.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://1.1.1.1:22022/",
        "http://user:password@10.0.0.1/",
    ],
)
async def test_private_addresses_are_refused_in_every_notation(pool: BrowserPool, web: Web, url: str) -> None:
    with pytest.raises(EgressBlocked) as error:
        async with pool.page() as page:
            await page.goto(url)
    assert "password@" not in str(error.value)
    assert web.dialled == []


async def test_requests_that_playwright_makes_itself_go_through_the_gate(pool: BrowserPool, web: Web) -> None:
    async with pool.page() as page:
        response = await page.request.get("http://public.example/")
        assert response.status == 200
        with pytest.raises(PlaywrightError):
            await page.request.get("http://nav.inside.example/")
    assert not [hit for hit in web.hits if not hit.startswith("/")]


async def test_a_host_that_does_not_exist_is_unreachable_not_blocked(pool: BrowserPool, web: Web) -> None:
    web.names["dead.example"] = ["1.2.3.4"]
    with pytest.raises(HostUnreachable, match=r"missing\.example:80 was not reached: there is no such name"):
        async with pool.page() as page:
            await page.goto("http://missing.example/")
    async with pool.page() as page:
        await page.goto("http://public.example/")
        await page.evaluate("fetch('http://nav.inside.example/', {mode: 'no-cors'}).catch(() => 0)")
        lease = await pool.acquire_page()
        with pytest.raises(PlaywrightError) as error:
            await lease.page.goto("http://dead.example/")
        cause = await lease.cause(error.value)
        assert isinstance(cause, HostUnreachable)
        assert str(cause).startswith("dead.example:80 was not reached: nothing listens")
        lease.release()


async def test_each_page_records_only_its_own_hosts(pool: BrowserPool) -> None:
    one, other = await pool.acquire_page(), await pool.acquire_page()
    with pytest.raises(PlaywrightError):
        await one.page.goto("http://nav.inside.example/")
    assert one.gate is not None
    assert other.gate is not None
    assert [b.host for b in one.gate.blocked] == ["nav.inside.example"]
    assert other.gate.blocked == []
    for lease in (one, other):
        lease.release()
        await lease.wait_closed()
    assert one.gate.connections == 0


async def test_pages_with_egress_any_reach_every_address(pool: BrowserPool, web: Web) -> None:
    async with pool.page(PageOptions(egress="any")) as page:
        port = web.servers["10.0.0.1", 80]
        with pytest.raises(PlaywrightError, match="ERR_EMPTY_RESPONSE"):
            await page.goto(f"http://127.0.0.1:{port}/")
    assert web.hits == ["GET / HTTP/1.1\r\n"] * len(web.hits)
    assert web.hits


async def test_an_invalid_proxy_raises_invalid_arguments(pool: BrowserPool) -> None:
    with pytest.raises(InvalidArguments, match="the proxy cannot be used: a proxy is http://host:port"):
        await pool.acquire_page(PageOptions(proxy=Proxy(server="ftp://proxy.example")))
    assert pool.stats().open == 0


async def test_udp_that_would_bypass_the_gate_is_off(pool: BrowserPool) -> None:
    process = pool.browsers[0].process
    assert process is not None
    assert "--disable-quic" in process.command
    assert "--force-webrtc-ip-handling-policy=disable_non_proxied_udp" in process.command


@job(retries=3, browser={"viewport": {"width": 300, "height": 200}})
async def egress_visit(page: Page, url: str) -> str:
    await page.goto(url)
    return await page.title()


async def test_a_job_that_is_refused_fails_without_a_retry_and_names_the_rule(
    settings: CplaneSettings, plane: ControlPlane, web: Web
) -> None:
    url = f"http://127.0.0.1:{web.servers['127.0.0.1', 80]}/"
    async with running(settings.model_copy(update={"egress_allow": ()}), pages=True):
        handle = await egress_visit.submit(url=url)
        with pytest.raises(
            JobFailed, match=r"127\.0\.0\.1:\d+ was not reached: 127\.0\.0\.1 is a loopback address"
        ) as error:
            await handle.result(timeout=DEADLINE_S)
    assert error.value.error_type == "EgressBlocked"
    assert len(await plane.attempts(handle.id)) == 1
    assert web.hits == []
    async with running(settings, pages=True):
        assert await (await egress_visit.submit(url=url)).result(timeout=DEADLINE_S) == "Site"
