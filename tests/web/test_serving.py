"""The server in our own loop: where it listens, how it stops, and what it does for clients that leave."""

import asyncio
import re
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx2
import pytest
from structlog.testing import capture_logs

from cplane import ControlPlane, CplaneSettings
from cplane.errors import InvalidSettings
from cplane.postgres.models import JobRecord
from cplane.web import create_app, open_server, serve
from cplane.web.uvicorn import TOGETHER_BYTES, CoalescingTransport, IdleTimer

if TYPE_CHECKING:
    from tests.web.conftest import Api, Hand

JOBS = "/api/v1/jobs"


async def test_the_app_opens_a_plane_of_its_own(settings: CplaneSettings) -> None:
    app = create_app(settings)
    async with open_server(app, "127.0.0.1", 0) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.post(JOBS, json={"job": "web_add", "args": {"x": 1}})).status_code == 202
    assert app.state.plane is None


async def test_settings_come_from_the_environment(settings: CplaneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPLANE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("CPLANE_REDIS_URL", settings.redis_url.get_secret_value())
    async with open_server(create_app(), "127.0.0.1", 0) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_an_import_that_fails_ends_the_start(settings: CplaneSettings) -> None:
    app = create_app(settings.model_copy(update={"imports": ("no_such_module",)}))
    with pytest.raises(InvalidSettings, match="no_such_module"):
        async with open_server(app, "127.0.0.1", 0):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
async def test_the_url_can_be_opened(plane: ControlPlane, host: str) -> None:
    async with open_server(create_app(plane=plane), host, 0) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{server.url}/livez")).status_code == 200


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", None, r"port \d+ is taken on 127.0.0.1 \(choose another: --port\)"),
        ("203.0.113.1", 0, r"'203.0.113.1' is not an address of this machine"),
        ("no such host", 0, r"'no such host' is not a name or an address"),
        ("127.0.0.1", 70_000, r"70000 is not a port"),
        ("127.0.0.1", -1, r"-1 is not a port"),
    ],
)
async def test_an_address_that_cannot_be_had_is_one_clear_sentence(
    plane: ControlPlane, host: str, port: int | None, sentence: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InvalidSettings, match=sentence):
        async with open_server(create_app(plane=plane), host, other.getsockname()[1] if port is None else port):
            pass


async def test_a_port_is_free_again_after_serving(plane: ControlPlane) -> None:
    async with open_server(create_app(plane=plane), "127.0.0.1", 0) as server:
        port = int(server.url.rpartition(":")[2])
        async with httpx2.AsyncClient() as client:
            await client.get(f"{server.url}/livez")
    async with open_server(create_app(plane=plane), "127.0.0.1", port) as server:
        assert server.url.endswith(f":{port}")


async def test_serve_tells_its_url_and_ends_when_told(plane: ControlPlane) -> None:
    stop, urls = asyncio.Event(), asyncio.Queue[str]()
    serving = asyncio.create_task(serve(create_app(plane=plane), "127.0.0.1", 0, stop=stop, started=urls.put_nowait))
    url = await urls.get()
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{url}/livez")).status_code == 200
        stop.set()
        await serving
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"{url}/livez")


async def test_serve_can_be_cancelled(plane: ControlPlane) -> None:
    urls = asyncio.Queue[str]()
    app = create_app(plane=plane)
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, stop=asyncio.Event(), started=urls.put_nowait))
    url = await urls.get()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(url)


async def test_signals_stay_with_whoever_owns_the_loop(plane: ControlPlane) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with open_server(create_app(plane=plane), "127.0.0.1", 0):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Waits:
    """Watches the waits of a plane."""

    def __init__(self, wait: Callable[[UUID, float | None], Any]) -> None:
        self._wait = wait
        self.begun = asyncio.Event()
        self.over = asyncio.Event()

    async def __call__(self, record_id: UUID, timeout: float | None = None) -> JobRecord:
        self.begun.set()
        try:
            record: JobRecord = await self._wait(record_id, timeout)
            return record
        finally:
            self.over.set()


@pytest.fixture
def waits(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits(plane.wait)
    monkeypatch.setattr(plane, "wait", waits)
    return waits


def tasks() -> set[str]:
    """Names of what runs on behalf of a waiting client."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return {name for name in names if name.startswith(("wait for ", "listen whether"))}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(api: "Api", waits: Waits, method: str) -> None:
    record = await api.submit()
    url = api.client.base_url
    path = f"{record['url']}?wait=60" if method == "GET" else f"{JOBS}?wait=60"
    body = b"" if method == "GET" else b'{"job": "web_add", "args": {"x": 1}}'
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(url.host, url.port)
    with capture_logs() as logs:
        writer.write(head.encode() + body)
        async with asyncio.timeout(10):
            await waits.begun.wait()
            assert tasks()
            writer.close()
            await waits.over.wait()
            await api.recorded()
    assert not tasks()
    assert not [line for line in logs if line["log_level"] != "debug"]


async def test_a_wait_that_ends_leaves_nothing_behind(api: "Api", hand: "Hand", waits: Waits) -> None:
    record = await api.submit()
    waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 60}))
    await waits.begun.wait()
    await hand.succeed(await hand.start(record["id"]), 3)
    assert (await waiting).json()["result"] == 3
    assert not tasks()


async def test_a_server_that_stops_lets_nobody_wait(plane: ControlPlane, waits: Waits) -> None:
    stop, urls = asyncio.Event(), asyncio.Queue[str]()
    serving = asyncio.create_task(serve(create_app(plane=plane), "127.0.0.1", 0, stop=stop, started=urls.put_nowait))
    async with httpx2.AsyncClient(base_url=await urls.get(), timeout=30) as client:
        body = {"job": "web_add", "args": {"x": 1}}
        waiting = asyncio.create_task(client.post(JOBS, params={"wait": 60}, json=body))
        await waits.begun.wait()
        stop.set()
        answer = await waiting
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        async with asyncio.timeout(10):
            await serving


async def test_a_request_leaves_one_line_without_its_secrets(api: "Api") -> None:
    with capture_logs() as logs:
        await api.client.get(f"{JOBS}?limit=7", headers={"authorization": "Bearer hidden"})
        await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 12345}})
    lines = [line for line in logs if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"], line["log_level"]) for line in lines] == [
        ("GET", JOBS, 200, "debug"),
        ("POST", JOBS, 202, "debug"),
    ]
    assert all(line["took_ms"] > 0 for line in lines)
    for secret in ("hidden", "limit", "12345"):
        assert secret not in str(lines)


class Recording(asyncio.Transport):
    """What would go out, call by call."""

    def __init__(self) -> None:
        super().__init__({"peername": ("::1", 7)})
        self.calls: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("closed")


async def test_what_is_written_in_one_turn_leaves_as_one() -> None:
    sent = Recording()
    together = CoalescingTransport(sent, asyncio.get_running_loop())
    assert together.get_extra_info("peername") == ("::1", 7)
    together.write(b"head ")
    together.write(b"body")
    assert sent.calls == []
    await asyncio.sleep(0)
    together.write(b"next")
    together.write(large := b"x" * TOGETHER_BYTES)
    assert sent.calls == [b"head body", b"next" + large], "who writes much hears when the client cannot follow"
    together.write(b"last")
    together.close()
    await asyncio.sleep(0)
    assert sent.calls[2:] == [b"last", "closed"]


async def rung_after(seconds: float) -> None:
    rung = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, rung.set)
    await rung.wait()


async def test_a_connection_rings_when_it_was_idle_for_so_long() -> None:
    loop = asyncio.get_running_loop()
    timer, rung = IdleTimer(loop), asyncio.Event()
    timer.call_later(0.01, rung.set).cancel()  # a request came
    later = loop.time() + 0.05
    timer.call_later(0.05, rung.set)  # and was answered
    await rung.wait()
    assert loop.time() >= later


async def test_a_connection_that_is_busy_or_gone_does_not_ring() -> None:
    timer, rung = IdleTimer(asyncio.get_running_loop()), asyncio.Event()
    timer.call_later(0.01, rung.set).cancel()
    await rung_after(0.03)
    assert not rung.is_set()
    timer.call_later(0.01, rung.set)
    await rung.wait()


async def test_many_answers_of_a_connection_need_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    call_at: Any = loop.call_at

    def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return cast("asyncio.TimerHandle", call_at(*args, **kwargs))

    monkeypatch.setattr(loop, "call_at", counted)
    timer = IdleTimer(loop)
    for _ in range(100):
        timer.call_later(60.0, pytest.fail).cancel()
    assert timers == 1


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(
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
            await rung_after(0.1)
        async with asyncio.timeout(10):
            await reader.read()  # until the server closes
        writer.close()
