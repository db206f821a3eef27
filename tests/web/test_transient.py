"""Transient jobs (`record=False`) over HTTP: shown, waited for and cancelled as long as Redis keeps them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane, CplaneSettings, job
from cplane.web import create_app, open_server
from tests.workers import running

if TYPE_CHECKING:
    from pathlib import Path

    from cplane.worker import Worker
    from tests.web.conftest import Api

JOBS = "/api/v1/jobs"


@job(record=False, priority="high")
async def web_transient(x: int = 1) -> int:
    return x * 2


@job(record=False)
async def web_transient_broken() -> None:
    raise LookupError("nowhere")


@job(record=False)
async def web_transient_slow() -> None:
    await asyncio.Event().wait()


@job(record=False, result_ttl=0)
async def web_transient_without_result() -> None:
    pass


@pytest_asyncio.fixture
async def worker(settings: CplaneSettings) -> "AsyncGenerator[Worker]":
    async with running(settings) as worker:
        yield worker


async def submitted(api: "Api", name: str, args: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return await api.submit(name, args or {}, **options)


async def test_a_submission_returns_202_and_recorded_false(api: "Api") -> None:
    response = await api.client.post(JOBS, json={"job": "web_transient", "args": {"x": 3}})
    transient = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"{JOBS}/{transient['id']}")
    assert (transient["recorded"], transient["state"], transient["priority"], transient["args"]) == (
        False,
        "queued",
        "high",
        {"x": 3},
    )
    assert (transient["attempts"], transient["artifacts"]) == ([], [])
    shown = (await api.client.get(transient["url"])).json()
    assert list(shown) == list(transient)
    times = ("created_at", "run_at")  # from two clocks
    assert {**shown, **dict.fromkeys(times)} == {**transient, **dict.fromkeys(times)}
    assert await api.count_records() == 0


async def test_the_largest_integers_are_carried_unchanged(api: "Api", worker: "Worker") -> None:
    numbers = [2**64 - 1, -(2**63), 2**53 + 1, 1.5, 1e300]
    transient = await submitted(api, "web_transient_any", {"value": numbers})
    assert transient["args"] == {"value": numbers}
    ended = (await api.client.get(transient["url"], params={"wait": 20})).json()
    assert (ended["state"], ended["result"]) == ("succeeded", numbers)


async def test_a_result_is_returned_until_it_expires(api: "Api", plane: ControlPlane, worker: "Worker") -> None:
    transient = await submitted(api, "web_transient", {"x": 3})
    ended = (await api.client.get(transient["url"], params={"wait": 20})).json()
    assert (ended["state"], ended["result"], ended["attempt"], ended["recorded"]) == ("succeeded", 6, 1, False)
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]
    assert (await api.client.get(transient["url"])).json() == ended

    await plane.redis.delete(f"arq:result:{transient['id']}")
    for response in (
        await api.client.get(transient["url"]),
        await api.client.get(transient["url"], params={"wait": 5}),
        await api.client.post(f"{transient['url']}/cancel"),
        await api.client.post(f"{transient['url']}/retry"),
    ):
        assert (response.status_code, response.json()["type"]) == (404, "/problems/unknown-id")


async def test_a_waiting_submission_returns_200_with_the_result(api: "Api", worker: "Worker") -> None:
    response = await api.client.post(JOBS, params={"wait": 20}, json={"job": "web_transient", "args": {"x": 4}})
    assert (response.status_code, response.json()["result"]) == (200, 8)


async def test_a_failed_job_has_its_error(api: "Api", worker: "Worker") -> None:
    transient = await submitted(api, "web_transient_broken")
    ended = (await api.client.get(transient["url"], params={"wait": 20})).json()
    assert (ended["state"], ended["result"]) == ("failed", None)
    assert (ended["error"]["type"], ended["error"]["message"]) == ("LookupError", "nowhere")
    assert "web_transient_broken" in ended["error"]["traceback"]


@pytest.mark.parametrize("queue", ["default", "elsewhere"])
async def test_a_queued_job_is_cancelled_immediately(api: "Api", plane: ControlPlane, queue: str) -> None:
    transient = await submitted(api, "web_transient", queue=queue, priority="low")
    assert await plane.queue.depth(queue) == 1
    shown = (await api.client.get(transient["url"])).json()
    assert (shown["queue"], shown["priority"]) == (queue, "low")
    response = await api.client.post(f"{transient['url']}/cancel")
    assert (response.status_code, response.json()["state"], response.json()["queue"]) == (200, "cancelled", queue)
    assert await plane.queue.depth(queue) == 0
    again = await api.client.post(f"{transient['url']}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/invalid-transition")


async def test_a_running_job_is_cancelled(api: "Api", plane: ControlPlane, worker: "Worker") -> None:
    transient = await submitted(api, "web_transient_slow")
    async with asyncio.timeout(20):
        while (await api.client.get(transient["url"])).json()["state"] != "running":
            pass
        response = await api.client.post(f"{transient['url']}/cancel")
        assert response.status_code in {200, 202}
        ended = (await api.client.get(transient["url"], params={"wait": 20})).json()
    assert ended["state"] == "cancelled"


async def test_a_delayed_job_has_its_start_time(api: "Api") -> None:
    transient = await submitted(api, "web_transient", at="2090-01-01T12:00:00Z")
    for shown in (transient, (await api.client.get(transient["url"])).json()):
        assert shown["run_at"].startswith(("2090-01-01T12:00:00", "2090-01-01T11:59:59"))


async def test_a_transient_job_cannot_be_retried(api: "Api") -> None:
    transient = await submitted(api, "web_transient")
    response = await api.client.post(f"{transient['url']}/retry")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/invalid-transition")
    assert "no record" in response.json()["detail"]


async def test_an_idempotency_key_is_refused_in_one_sentence(api: "Api", plane: ControlPlane) -> None:
    response = await api.client.post(JOBS, json={"job": "web_transient"}, headers={"idempotency-key": "k"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["header"] == "Idempotency-Key"
    assert "keeps no record" in response.json()["detail"]
    assert await plane.queue.depth("default") == 0


async def test_a_wait_for_a_job_without_result_is_refused(api: "Api", plane: ControlPlane) -> None:
    response = await api.client.post(JOBS, json={"job": "web_transient_without_result"}, params={"wait": 1})
    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (422, "wait")
    assert "'web_transient_without_result' keeps no result" in response.json()["detail"]
    assert await plane.queue.depth("default") == 0
    assert (await api.client.post(JOBS, json={"job": "web_transient_without_result"})).status_code == 202


async def test_transient_jobs_work_without_postgres(settings: CplaneSettings, tmp_path: "Path") -> None:
    unavailable = settings.model_copy(
        update={"database_url": SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")}
    )
    async with (
        open_server(create_app(unavailable), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        transient = (await client.post(JOBS, json={"job": "web_transient", "args": {"x": 3}})).json()
        assert (await client.get(transient["url"])).json()["state"] == "queued"
        unfinished = await client.get(transient["url"], params={"wait": 0.1})
        assert (unfinished.status_code, unfinished.json()["state"]) == (200, "queued")
        async with running(settings):
            ended = (await client.get(transient["url"], params={"wait": 20})).json()
        assert (ended["state"], ended["result"]) == ("succeeded", 6)
        other = (await client.post(JOBS, json={"job": "web_transient"})).json()
        cancelled = await client.post(f"{other['url']}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        unknown = await client.get(f"{JOBS}/01890000-0000-7000-8000-000000000000")
        assert (unknown.status_code, unknown.json()["type"]) == (503, "/problems/database-unavailable")


async def test_without_redis_a_submission_returns_503(settings: CplaneSettings, tmp_path: "Path") -> None:
    unavailable = settings.model_copy(update={"redis_url": SecretStr(f"unix://{tmp_path}/nobody.sock")})
    async with (
        open_server(create_app(unavailable), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        response = await client.post(JOBS, json={"job": "web_transient"})
        assert (response.status_code, response.json()["type"]) == (503, "/problems/queue-unavailable")
