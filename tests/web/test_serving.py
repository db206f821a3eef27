"""The server in the caller's event loop: where it listens, how it stops, and clients that disconnect."""

import asyncio
import re
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from cplane import ControlPlane, CplaneSettings
from cplane.errors import InvalidSettings
from cplane.postgres.models import JobRecord
from cplane.web import create_app, open_server, serve

if TYPE_CHECKING:
    from tests.web.conftest import Api, FakeWorker

JOBS = "/api/v1/jobs"


async def test_the_app_opens_its_own_control_plane(settings: CplaneSettings) -> None:
    app = create_app(settings)
    async with open_server(app, "127.0.0.1", 0) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.post(JOBS, json={"job": "web_add", "args": {"x": 1}})).status_code == 202
    assert app.state.plane is None


async def test_settings_come_from_the_environment(settings: CplaneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPLANE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("CPLANE_REDIS_URL", settings.redis_url.get_secret_value())
    async with open_server(create_app(), "127.0.0.1", 0) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_a_failed_import_fails_the_start(settings: CplaneSettings) -> None:
    app = create_app(settings.model_copy(update={"imports": ("no_such_module",)}))
    with pytest.raises(InvalidSettings, match="no_such_module"):
        async with open_server(app, "127.0.0.1", 0):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
async def test_the_url_can_be_opened(plane: ControlPlane, host: str) -> None:
    async with open_server(create_app(plane=plane), host, 0, insecure=True) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{server.url}/livez")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_an_api_without_keys_does_not_listen_beyond_loopback(plane: ControlPlane, host: str) -> None:
    with pytest.raises(InvalidSettings, match=f"'{host}' can be reached by other machines, and the API has no keys"):
        async with open_server(create_app(plane=plane), host, 0):
            pass
    settings = plane.settings.model_copy(update={"api_keys": (SecretStr("a-key"),)})
    async with open_server(create_app(settings, plane=plane), "0.0.0.0", 0):
        pass


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
async def test_an_unavailable_address_is_one_clear_sentence(
    plane: ControlPlane, host: str, port: int | None, sentence: str
) -> None:
    app = create_app(plane=plane)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InvalidSettings, match=sentence):
        async with open_server(app, host, other.getsockname()[1] if port is None else port, insecure=True):
            pass


async def test_a_port_is_free_again_after_serving(plane: ControlPlane) -> None:
    async with open_server(create_app(plane=plane), "127.0.0.1", 0) as server:
        port = int(server.url.rpartition(":")[2])
        async with httpx2.AsyncClient() as client:
            await client.get(f"{server.url}/livez")
    async with open_server(create_app(plane=plane), "127.0.0.1", port) as server:
        assert server.url.endswith(f":{port}")


async def test_serve_reports_its_url_and_ends_at_the_stop_event(plane: ControlPlane) -> None:
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


async def test_signals_are_left_to_the_owner_of_the_loop(plane: ControlPlane) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with open_server(create_app(plane=plane), "127.0.0.1", 0):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Waits:
    """Watches calls of `ControlPlane.wait`."""

    def __init__(self, wait: Callable[[UUID, float | None], Any]) -> None:
        self._wait = wait
        self.started = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, record_id: UUID, timeout: float | None = None) -> JobRecord:
        self.started.set()
        try:
            record: JobRecord = await self._wait(record_id, timeout)
            return record
        finally:
            self.ended.set()


@pytest.fixture
def waits(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits(plane.wait)
    monkeypatch.setattr(plane, "wait", waits)
    return waits


def tasks() -> set[str]:
    """Names of the tasks that serve a waiting client."""
    names = [task.get_name() for task in asyncio.all_tasks()]
    return {name for name in names if name.startswith(("wait for ", "watch the client", "watch for the stop"))}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_that_disconnects_while_it_waits_leaves_no_task(api: "Api", waits: Waits, method: str) -> None:
    record = await api.submit()
    url = api.client.base_url
    path = f"{record['url']}?wait=60" if method == "GET" else f"{JOBS}?wait=60"
    body = b"" if method == "GET" else b'{"job": "web_add", "args": {"x": 1}}'
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_connection(url.host, url.port)
    with capture_logs() as logs:
        writer.write(head.encode() + body)
        async with asyncio.timeout(10):
            await waits.started.wait()
            assert tasks()
            writer.close()
            await waits.ended.wait()
            await api.count_records()
    assert not tasks()
    assert not [line for line in logs if line["log_level"] != "debug"]


async def test_a_wait_that_ends_leaves_no_task(api: "Api", fake_worker: "FakeWorker", waits: Waits) -> None:
    record = await api.submit()
    waiting = asyncio.create_task(api.client.get(record["url"], params={"wait": 60}))
    await waits.started.wait()
    await fake_worker.succeed(await fake_worker.start(record["id"]), 3)
    assert (await waiting).json()["result"] == 3
    assert not tasks()


async def test_a_server_that_stops_ends_all_waits(plane: ControlPlane, waits: Waits) -> None:
    stop, urls = asyncio.Event(), asyncio.Queue[str]()
    serving = asyncio.create_task(serve(create_app(plane=plane), "127.0.0.1", 0, stop=stop, started=urls.put_nowait))
    async with httpx2.AsyncClient(base_url=await urls.get(), timeout=30) as client:
        body = {"job": "web_add", "args": {"x": 1}}
        waiting = asyncio.create_task(client.post(JOBS, params={"wait": 60}, json=body))
        await waits.started.wait()
        stop.set()
        response = await waiting
        assert (response.status_code, response.json()["state"]) == (202, "queued")
        async with asyncio.timeout(10):
            await serving


async def test_a_request_is_logged_without_its_secrets(api: "Api") -> None:
    with capture_logs() as logs:
        await api.client.get(f"{JOBS}?limit=7", headers={"authorization": "Bearer hidden"})
        await api.client.post(JOBS, json={"job": "web_add", "args": {"x": 12345}})
    lines = [line for line in logs if line["event"] == "request_finished"]
    assert [(line["method"], line["path"], line["status"], line["log_level"]) for line in lines] == [
        ("GET", JOBS, 200, "debug"),
        ("POST", JOBS, 202, "debug"),
    ]
    assert all(line["took_ms"] > 0 for line in lines)
    for secret in ("hidden", "limit", "12345"):
        assert secret not in str(lines)
