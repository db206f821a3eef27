"""Bulk retry over HTTP."""

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

if TYPE_CHECKING:
    import httpx2

    from cplane import ControlPlane
    from tests.web.conftest import Api, FakeWorker

RETRY = "/api/v1/jobs/retry"


async def failed(api: "Api", fake_worker: "FakeWorker", count: int, **options: Any) -> list[str]:
    """Ids of failed jobs, newest first."""
    ids = [(await api.submit(**options))["id"] for _ in range(count)]
    for record_id in ids:
        await fake_worker.fail(await fake_worker.start(record_id))
    return ids[::-1]


async def retried(api: "Api", **body: Any) -> dict[str, Any]:
    response = await api.client.post(RETRY, json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


async def states(api: "Api") -> dict[str, str]:
    return {record["id"]: record["state"] for record in (await api.client.get("/api/v1/jobs")).json()["jobs"]}


async def test_all_failed_jobs_are_requeued(api: "Api", fake_worker: "FakeWorker", plane: "ControlPlane") -> None:
    ids = await failed(api, fake_worker, 3)
    cancelled = await api.submit()
    await api.client.post(f"{cancelled['url']}/cancel")
    await plane.redis.delete("arq:queue")

    assert await retried(api) == {"retried": 3, "next": None}
    assert await states(api) == {**dict.fromkeys(ids, "queued"), cancelled["id"]: "cancelled"}
    assert await plane.queue.depth("default") == 3
    assert await retried(api) == {"retried": 0, "next": None}


async def test_jobs_are_filtered_by_state_job_and_queue(api: "Api", fake_worker: "FakeWorker") -> None:
    await failed(api, fake_worker, 1)
    (elsewhere,) = await failed(api, fake_worker, 1, queue="elsewhere")
    (other,) = await failed(api, fake_worker, 1, name="web:any.thing", args={})
    assert await retried(api, queue="elsewhere") == {"retried": 1, "next": None}
    assert await retried(api, job="web:any.thing") == {"retried": 1, "next": None}
    found = await states(api)
    assert (found[elsewhere], found[other]) == ("queued", "queued")
    assert sorted(found.values()) == ["failed", "queued", "queued"]
    await api.client.post(f"/api/v1/jobs/{elsewhere}/cancel")
    assert await retried(api, state="cancelled") == {"retried": 1, "next": None}


async def test_a_call_continues_at_the_cursor_of_the_last_one(api: "Api", fake_worker: "FakeWorker") -> None:
    ids = await failed(api, fake_worker, 5)
    first = await retried(api, limit=2)
    assert first["retried"] == 2
    assert {record_id for record_id, state in (await states(api)).items() if state == "queued"} == set(ids[:2])

    await fake_worker.fail(await fake_worker.start(ids[0]))  # a job that fails again is not requeued a second time
    second = await retried(api, limit=2, cursor=first["next"])
    third = await retried(api, limit=2, cursor=second["next"])
    assert (second["retried"], third) == (2, {"retried": 1, "next": None})
    assert (await states(api))[ids[0]] == "failed"


async def test_concurrent_calls_share_the_jobs(api: "Api", fake_worker: "FakeWorker") -> None:
    await failed(api, fake_worker, 20)
    responses = await asyncio.gather(*(retried(api) for _ in range(4)))
    assert sum(response["retried"] for response in responses) == 20


async def test_jobs_are_requeued_in_chunks(plane: "ControlPlane", api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    from cplane.jobs.states import State
    from cplane.plane import recorded as plane_module
    from cplane.postgres.rows import RecordFilter

    monkeypatch.setattr(plane_module, "RETRY_CHUNK", 2)
    for _ in range(5):
        await api.client.post(f"{(await api.submit())['url']}/cancel")
    where = RecordFilter(State.CANCELLED)
    assert await plane.count_retriable(where) == 5
    steps: list[list[UUID]] = [ids async for ids in plane.retry_many(where)]
    assert [len(ids) for ids in steps] == [2, 2, 1]
    assert await plane.count_retriable(where) == 0


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"state": "succeeded"}, "/state"),
        ({"state": None}, "/state"),
        ({"job": "a b"}, "/job"),
        ({"queue": "a:b"}, "/queue"),
        ({"limit": 0}, "/limit"),
        ({"limit": 5001}, "/limit"),
        ({"limit": "all"}, "/limit"),
        ({"cursor": "nonsense"}, "/cursor"),
        ({"colour": "red"}, "/colour"),
    ],
)
async def test_an_invalid_filter_requeues_nothing(
    api: "Api", fake_worker: "FakeWorker", body: dict[str, Any], pointer: str
) -> None:
    await failed(api, fake_worker, 1)
    response: httpx2.Response = await api.client.post(RETRY, json=body)
    assert response.status_code == 422, response.text
    assert [each["pointer"] for each in response.json()["errors"]] == [pointer]
    assert response.json()["detail"].startswith(f"{pointer[1:]}: ")
    assert list((await states(api)).values()) == ["failed"]
