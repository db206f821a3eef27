"""Postgres or Redis away: a clean answer within 6 seconds, and what was accepted stays accepted."""

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
PROMISED_S = 6.0
SLACK_S = 4.0
"""For a machine that does other things as well."""


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@asynccontextmanager
async def served(settings: CplaneSettings) -> AsyncGenerator[httpx2.AsyncClient]:
    async with (
        open_server(create_app(settings), "127.0.0.1", 0, grace_s=1) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=PROMISED_S + SLACK_S) as client,
    ):
        yield client


def requests_to(client: httpx2.AsyncClient) -> list[Any]:
    """One request for each way to the database."""
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


def assert_unavailable(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["type"] in {"/problems/database-unavailable", "/problems/no-answer-in-time"}


async def test_without_postgres_every_route_answers_503(settings: CplaneSettings, tmp_path: Path) -> None:
    nobody = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with served(settings.model_copy(update={"database_url": nobody})) as client:
        for answer in await asyncio.gather(*requests_to(client)):
            assert_unavailable(answer)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert ready.json()["ready"] is False
        assert "Postgres did not answer" in ready.json()["checks"]["database"]
        assert ready.json()["checks"]["redis"] == "ok"
        assert (await client.get("/livez")).status_code == 200


async def test_a_postgres_that_never_answers_hangs_nobody(settings: CplaneSettings, black_hole: str) -> None:
    silent = SecretStr(f"postgresql://nobody:secret@{black_hole}/nothing")
    async with served(settings.model_copy(update={"database_url": silent})) as client:
        for answer in await asyncio.gather(*requests_to(client)):
            assert_unavailable(answer)
            assert "secret" not in answer.text
        assert (await client.get("/readyz")).status_code == 503


async def test_a_database_without_our_tables_answers_503(settings: CplaneSettings) -> None:
    other = SecretStr(urlsplit(settings.database_url.get_secret_value())._replace(path="/postgres").geturl())
    async with served(settings.model_copy(update={"database_url": other})) as client:
        answer = await client.get(JOBS)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/schema-mismatch")
        assert "cplane db upgrade" in answer.json()["hint"]


async def test_what_takes_too_long_is_answered_all_the_same(api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.web.routing.ANSWER_S", 0.001)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/no-answer-in-time")


@pytest.mark.parametrize("silent", [False, True])
async def test_without_redis_jobs_are_still_accepted(
    settings: CplaneSettings, tmp_path: Path, black_hole: str, silent: bool
) -> None:
    away = SecretStr(f"redis://{black_hole}/0" if silent else f"unix://{tmp_path}/nobody.sock")
    async with served(settings.model_copy(update={"redis_url": away})) as client:
        answer = await client.post(JOBS, json={"job": "web_add", "args": {"x": 1}})
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        waited = await client.get(answer.json()["url"], params={"wait": 0.2})
        assert (waited.status_code, waited.json()["state"]) == (200, "queued")
        cancelled = await client.post(f"{answer.json()['url']}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        again = await client.post(f"{answer.json()['url']}/retry")
        assert (again.status_code, again.json()["state"]) == (202, "queued")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        if not silent:
            assert ready.json()["checks"]["database"] == "ok"
            assert "Redis did not answer" in ready.json()["checks"]["redis"]
