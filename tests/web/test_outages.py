"""Postgres or Redis is unavailable: a clean response within 6 seconds, and accepted jobs stay accepted."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from cplane import CplaneSettings
from cplane.web import create_app, open_server

if TYPE_CHECKING:
    from tests.web.conftest import Api

JOBS = "/api/v1/jobs"
SESSIONS = "/api/v1/sessions"
ID = "01890000-0000-7000-8000-000000000000"
RESPONSE_TIMEOUT_S = 6.0
SLACK_S = 4.0
"""For a machine that is busy with other things."""


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@asynccontextmanager
async def served(settings: CplaneSettings) -> AsyncGenerator[httpx2.AsyncClient]:
    async with (
        open_server(create_app(settings), "127.0.0.1", 0, grace_s=1) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=RESPONSE_TIMEOUT_S + SLACK_S) as client,
    ):
        yield client


def requests_to(client: httpx2.AsyncClient) -> list[Any]:
    """One request for each use of the database."""
    body = {"job": "web_add", "args": {"x": 1}}
    return [
        client.post(JOBS, json=body),
        client.post(JOBS, json=body, params={"wait": 1}),
        client.get(JOBS),
        client.get(f"{JOBS}/{ID}"),
        client.get(f"{JOBS}/{ID}", params={"wait": 1}),
        client.post(f"{JOBS}/{ID}/cancel"),
        client.post(f"{JOBS}/{ID}/retry"),
        client.get(f"{JOBS}/{ID}/artifacts/a.png"),
        client.get(SESSIONS),
        client.get(f"{SESSIONS}/shop"),
        client.put(f"{SESSIONS}/shop", json={"cookies": []}),
        client.delete(f"{SESSIONS}/shop"),
    ]


def assert_unavailable(response: httpx2.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "5"
    assert response.json()["type"] in {"/problems/database-unavailable", "/problems/no-answer-in-time"}


async def test_without_postgres_every_route_returns_503(settings: CplaneSettings, tmp_path: Path) -> None:
    nobody = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with served(settings.model_copy(update={"database_url": nobody})) as client:
        for response in await asyncio.gather(*requests_to(client)):
            assert_unavailable(response)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert ready.json()["ready"] is False
        assert "Postgres" in ready.json()["checks"]["database"]
        assert ready.json()["checks"]["redis"] == "ok"
        assert (await client.get("/livez")).status_code == 200


async def test_an_unresponsive_postgres_blocks_no_request(settings: CplaneSettings, black_hole: str) -> None:
    silent = SecretStr(f"postgresql://nobody:secret@{black_hole}/nothing")
    async with served(settings.model_copy(update={"database_url": silent})) as client:
        for response in await asyncio.gather(*requests_to(client)):
            assert_unavailable(response)
            assert "secret" not in response.text
        assert (await client.get("/readyz")).status_code == 503


async def test_a_database_without_tables_returns_503(settings: CplaneSettings) -> None:
    other = SecretStr(urlsplit(settings.database_url.get_secret_value())._replace(path="/postgres").geturl())
    async with served(settings.model_copy(update={"database_url": other})) as client:
        response = await client.get(JOBS)
        assert (response.status_code, response.json()["type"]) == (503, "/problems/schema-mismatch")
        assert "cplane db upgrade" in response.json()["hint"]


async def test_a_request_that_takes_too_long_returns_503(api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.web.routing.RESPONSE_TIMEOUT_S", 0.001)
    response = await api.client.get("/readyz")
    assert (response.status_code, response.json()["type"]) == (503, "/problems/no-answer-in-time")


@pytest.mark.parametrize("silent", [False, True])
async def test_without_redis_jobs_are_still_accepted(
    settings: CplaneSettings, tmp_path: Path, black_hole: str, silent: bool
) -> None:
    unavailable = SecretStr(f"redis://{black_hole}/0" if silent else f"unix://{tmp_path}/nobody.sock")
    async with served(settings.model_copy(update={"redis_url": unavailable})) as client:
        response = await client.post(JOBS, json={"job": "web_add", "args": {"x": 1}})
        assert (response.status_code, response.json()["state"]) == (202, "queued")
        waited = await client.get(response.json()["url"], params={"wait": 0.2})
        assert (waited.status_code, waited.json()["state"]) == (200, "queued")
        cancelled = await client.post(f"{response.json()['url']}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        again = await client.post(f"{response.json()['url']}/retry")
        assert (again.status_code, again.json()["state"]) == (202, "queued")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        if not silent:
            assert ready.json()["checks"]["database"] == "ok"
            assert "Redis" in ready.json()["checks"]["redis"]
