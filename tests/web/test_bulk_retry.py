"""Running many failed or cancelled jobs again, over HTTP."""

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

if TYPE_CHECKING:
    import httpx2

    from cplane import ControlPlane
    from tests.web.conftest import Api, Hand

RETRY = "/api/v1/jobs/retry"


async def failed(api: "Api", hand: "Hand", count: int, **more: Any) -> list[str]:
    """Ids of failed jobs, newest first."""
    ids = [(await api.submit(**more))["id"] for _ in range(count)]
    for record_id in ids:
        await hand.fail(await hand.start(record_id))
    return ids[::-1]


async def retried(api: "Api", **body: Any) -> dict[str, Any]:
    answer = await api.client.post(RETRY, json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def states(api: "Api") -> dict[str, str]:
    return {record["id"]: record["state"] for record in (await api.client.get("/api/v1/jobs")).json()["jobs"]}


async def test_all_failed_jobs_are_queued_again(api: "Api", hand: "Hand", plane: "ControlPlane") -> None:
    ids = await failed(api, hand, 3)
    cancelled = await api.submit()
    await api.client.post(f"{cancelled['url']}/cancel")
    await plane.redis.delete("arq:queue")

    assert await retried(api) == {"retried": 3, "next": None}
    assert await states(api) == {**dict.fromkeys(ids, "queued"), cancelled["id"]: "cancelled"}
    assert await plane.queue.depth("default") == 3
    assert await retried(api) == {"retried": 0, "next": None}


async def test_they_are_chosen_by_state_job_and_queue(api: "Api", hand: "Hand") -> None:
    await failed(api, hand, 1)
    (elsewhere,) = await failed(api, hand, 1, queue="elsewhere")
    (other,) = await failed(api, hand, 1, name="web:any.thing", args={})
    assert await retried(api, queue="elsewhere") == {"retried": 1, "next": None}
    assert await retried(api, job="web:any.thing") == {"retried": 1, "next": None}
    found = await states(api)
    assert (found[elsewhere], found[other]) == ("queued", "queued")
    assert sorted(found.values()) == ["failed", "queued", "queued"]
    await api.client.post(f"/api/v1/jobs/{elsewhere}/cancel")
    assert await retried(api, state="cancelled") == {"retried": 1, "next": None}


async def test_a_call_goes_on_where_the_last_one_stopped(api: "Api", hand: "Hand") -> None:
    ids = await failed(api, hand, 5)
    first = await retried(api, limit=2)
    assert first["retried"] == 2
    assert {record_id for record_id, state in (await states(api)).items() if state == "queued"} == set(ids[:2])

    await hand.fail(await hand.start(ids[0]))  # one that fails again is not met a second time
    second = await retried(api, limit=2, cursor=first["next"])
    third = await retried(api, limit=2, cursor=second["next"])
    assert (second["retried"], third) == (2, {"retried": 1, "next": None})
    assert (await states(api))[ids[0]] == "failed"


async def test_two_calls_at_once_share_the_jobs(api: "Api", hand: "Hand") -> None:
    await failed(api, hand, 20)
    answers = await asyncio.gather(*(retried(api) for _ in range(4)))
    assert sum(answer["retried"] for answer in answers) == 20


async def test_it_works_in_chunks(plane: "ControlPlane", api: "Api", monkeypatch: pytest.MonkeyPatch) -> None:
    from cplane.jobs.states import State
    from cplane.plane import control_plane as plane_module
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
async def test_a_wrong_filter_retries_nothing(api: "Api", hand: "Hand", body: dict[str, Any], pointer: str) -> None:
    await failed(api, hand, 1)
    answer: httpx2.Response = await api.client.post(RETRY, json=body)
    assert answer.status_code == 422, answer.text
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert answer.json()["detail"].startswith(f"{pointer[1:]}: ")
    assert list((await states(api)).values()) == ["failed"]
