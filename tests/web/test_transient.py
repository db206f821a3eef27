"""Jobs without a record (`record=False`) over HTTP: shown, waited for and cancelled as long as Redis keeps them."""

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
async def web_brief(x: int = 1) -> int:
    return x * 2


@job(record=False)
async def web_brief_broken() -> None:
    raise LookupError("nowhere")


@job(record=False)
async def web_brief_slow() -> None:
    await asyncio.Event().wait()


@job(record=False, result_ttl=0)
async def web_brief_forgotten() -> None:
    pass


@pytest_asyncio.fixture
async def worker(settings: CplaneSettings) -> "AsyncGenerator[Worker]":
    async with running(settings) as worker:
        yield worker


async def submitted(api: "Api", name: str, args: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return await api.submit(name, args or {}, **more)


async def test_a_submission_answers_202_and_says_that_there_is_no_record(api: "Api") -> None:
    answer = await api.client.post(JOBS, json={"job": "web_brief", "args": {"x": 3}})
    brief = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"{JOBS}/{brief['id']}")
    assert (brief["recorded"], brief["state"], brief["priority"], brief["args"]) == (False, "queued", "high", {"x": 3})
    assert (brief["attempts"], brief["artifacts"]) == ([], [])
    shown = (await api.client.get(brief["url"])).json()
    assert list(shown) == list(brief)
    times = ("created_at", "run_at")  # of two clocks
    assert {**shown, **dict.fromkeys(times)} == {**brief, **dict.fromkeys(times)}
    assert await api.recorded() == 0


async def test_a_result_is_shown_while_it_is_kept(api: "Api", plane: ControlPlane, worker: "Worker") -> None:
    brief = await submitted(api, "web_brief", {"x": 3})
    ended = (await api.client.get(brief["url"], params={"wait": 20})).json()
    assert (ended["state"], ended["result"], ended["attempt"], ended["recorded"]) == ("succeeded", 6, 1, False)
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]
    assert (await api.client.get(brief["url"])).json() == ended

    await plane.redis.delete(f"arq:result:{brief['id']}")
    for answer in (
        await api.client.get(brief["url"]),
        await api.client.get(brief["url"], params={"wait": 5}),
        await api.client.post(f"{brief['url']}/cancel"),
        await api.client.post(f"{brief['url']}/retry"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-id")


async def test_a_waiting_submission_answers_200_with_the_result(api: "Api", worker: "Worker") -> None:
    answer = await api.client.post(JOBS, params={"wait": 20}, json={"job": "web_brief", "args": {"x": 4}})
    assert (answer.status_code, answer.json()["result"]) == (200, 8)


async def test_a_failure_has_its_error(api: "Api", worker: "Worker") -> None:
    brief = await submitted(api, "web_brief_broken")
    ended = (await api.client.get(brief["url"], params={"wait": 20})).json()
    assert (ended["state"], ended["result"]) == ("failed", None)
    assert (ended["error"]["type"], ended["error"]["message"]) == ("LookupError", "nowhere")
    assert "web_brief_broken" in ended["error"]["traceback"]


@pytest.mark.parametrize("queue", ["default", "elsewhere"])
async def test_a_queued_one_is_cancelled_at_once(api: "Api", plane: ControlPlane, queue: str) -> None:
    brief = await submitted(api, "web_brief", queue=queue, priority="low")
    assert await plane.queue.depth(queue) == 1
    shown = (await api.client.get(brief["url"])).json()
    assert (shown["queue"], shown["priority"]) == (queue, "low")
    answer = await api.client.post(f"{brief['url']}/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["queue"]) == (200, "cancelled", queue)
    assert await plane.queue.depth(queue) == 0
    again = await api.client.post(f"{brief['url']}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/invalid-transition")


async def test_a_running_one_is_told(api: "Api", plane: ControlPlane, worker: "Worker") -> None:
    brief = await submitted(api, "web_brief_slow")
    async with asyncio.timeout(20):
        while (await api.client.get(brief["url"])).json()["state"] != "running":
            pass
        answer = await api.client.post(f"{brief['url']}/cancel")
        assert answer.status_code in {200, 202}
        ended = (await api.client.get(brief["url"], params={"wait": 20})).json()
    assert ended["state"] == "cancelled"


async def test_a_delay_is_shown(api: "Api") -> None:
    brief = await submitted(api, "web_brief", at="2090-01-01T12:00:00Z")
    for shown in (brief, (await api.client.get(brief["url"])).json()):
        assert shown["run_at"].startswith(("2090-01-01T12:00:00", "2090-01-01T11:59:59"))


async def test_it_cannot_be_run_again(api: "Api") -> None:
    brief = await submitted(api, "web_brief")
    answer = await api.client.post(f"{brief['url']}/retry")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/invalid-transition")
    assert "no record" in answer.json()["detail"]


async def test_an_idempotency_key_is_refused_in_one_sentence(api: "Api", plane: ControlPlane) -> None:
    answer = await api.client.post(JOBS, json={"job": "web_brief"}, headers={"idempotency-key": "k"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["header"] == "Idempotency-Key"
    assert "keeps no record" in answer.json()["detail"]
    assert await plane.queue.depth("default") == 0


async def test_a_wait_for_a_result_that_nobody_keeps_is_refused(api: "Api", plane: ControlPlane) -> None:
    answer = await api.client.post(JOBS, json={"job": "web_brief_forgotten"}, params={"wait": 1})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "wait")
    assert "'web_brief_forgotten' keeps no result" in answer.json()["detail"]
    assert await plane.queue.depth("default") == 0
    assert (await api.client.post(JOBS, json={"job": "web_brief_forgotten"})).status_code == 202


async def test_without_postgres_redis_answers_for_its_jobs(settings: CplaneSettings, tmp_path: "Path") -> None:
    away = settings.model_copy(update={"database_url": SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")})
    async with (
        open_server(create_app(away), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        brief = (await client.post(JOBS, json={"job": "web_brief", "args": {"x": 3}})).json()
        assert (await client.get(brief["url"])).json()["state"] == "queued"
        unfinished = await client.get(brief["url"], params={"wait": 0.1})
        assert (unfinished.status_code, unfinished.json()["state"]) == (200, "queued")
        async with running(settings):
            ended = (await client.get(brief["url"], params={"wait": 20})).json()
        assert (ended["state"], ended["result"]) == ("succeeded", 6)
        other = (await client.post(JOBS, json={"job": "web_brief"})).json()
        cancelled = await client.post(f"{other['url']}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        unknown = await client.get(f"{JOBS}/01890000-0000-7000-8000-000000000000")
        assert (unknown.status_code, unknown.json()["type"]) == (503, "/problems/database-unavailable")


async def test_without_redis_a_submission_answers_503(settings: CplaneSettings, tmp_path: "Path") -> None:
    away = settings.model_copy(update={"redis_url": SecretStr(f"unix://{tmp_path}/nobody.sock")})
    async with (
        open_server(create_app(away), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        answer = await client.post(JOBS, json={"job": "web_brief"})
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/queue-unavailable")
