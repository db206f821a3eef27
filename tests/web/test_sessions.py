"""Browser sessions over HTTP: imported, listed and deleted, but their state is never returned."""

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx2
import pytest
from structlog.testing import capture_logs

from cplane import ControlPlane, CplaneSettings
from cplane.sessions.storage_state import MAX_BYTES
from cplane.web import create_app, open_server

if TYPE_CHECKING:
    from tests.web.conftest import Api, FakeWorker

SESSIONS = "/api/v1/sessions"
STATE: dict[str, Any] = {
    "cookies": [{"name": "sid", "value": "hunter2", "domain": "example.com", "path": "/", "later": 1}],
    "origins": [{"origin": "https://example.com", "localStorage": [{"name": "token", "value": "hunter2"}]}],
}


async def put(api: "Api", name: str = "shop", state: Any = STATE) -> httpx2.Response:
    return await api.client.put(f"{SESSIONS}/{name}", json=state)


async def hold(api: "Api", fake_worker: "FakeWorker", plane: ControlPlane, name: str = "shop") -> Any:
    started = await fake_worker.start((await api.submit())["id"])
    held = await plane.sessions.acquire(name, started.id, started.attempt)
    assert held is not None
    return held


def problem(response: httpx2.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    assert found["type"] == f"/problems/{slug}"
    assert "hunter2" not in response.text
    return found


async def test_a_job_gets_the_imported_state_and_no_response_contains_it(
    api: "Api", fake_worker: "FakeWorker", plane: ControlPlane
) -> None:
    with capture_logs() as logs:
        made = await put(api, "shop:jane@example.com")
        again = await put(api, "shop:jane@example.com")
        shown = await api.client.get(made.headers["location"])
        listed = await api.client.get(SESSIONS)
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.headers["location"] == f"{SESSIONS}/shop:jane@example.com"
    assert shown.json() == again.json()
    assert listed.json() == {"sessions": [again.json()], "next": None}
    found = shown.json()
    assert (found["name"], found["version"], found["held_by"]) == ("shop:jane@example.com", 2, None)
    assert found["size"] == len(json.dumps(STATE, separators=(",", ":")))
    assert "hunter2" not in made.text + again.text + shown.text + listed.text + str(logs)

    held = await hold(api, fake_worker, plane, "shop:jane@example.com")
    assert held.storage_state == STATE
    found = (await api.client.get(made.headers["location"])).json()
    assert (UUID(found["held_by"]), found["held_attempt"]) == (held.record_id, 1)
    assert found["used_at"] is not None


async def test_a_session_is_deleted(api: "Api") -> None:
    await put(api)
    response = await api.client.delete(f"{SESSIONS}/shop")
    assert (response.status_code, response.content) == (204, b"")
    for response in (await api.client.get(f"{SESSIONS}/shop"), await api.client.delete(f"{SESSIONS}/shop")):
        problem(response, 404, "unknown-session")


async def test_a_held_session_cannot_be_changed(api: "Api", fake_worker: "FakeWorker", plane: ControlPlane) -> None:
    held = await hold(api, fake_worker, plane)
    for response in (await put(api), await api.client.delete(f"{SESSIONS}/shop")):
        assert problem(response, 409, "session-in-use")["hint"]
    await plane.sessions.release(held)
    assert (await put(api)).status_code == 200


async def test_sessions_are_listed_in_pages(api: "Api") -> None:
    for name in ("c", "a", "b"):
        await put(api, name)
    first = await api.client.get(SESSIONS, params={"limit": 2})
    assert [each["name"] for each in first.json()["sessions"]] == ["a", "b"]
    assert first.headers["link"] == f'<{SESSIONS}?limit=2&cursor=b>; rel="next"'
    rest = await api.client.get(first.links["next"]["url"])
    assert ([each["name"] for each in rest.json()["sessions"]], rest.json()["next"]) == (["c"], None)
    for wrong in ({"limit": "0"}, {"cursor": "a b"}, {"name": "a"}):
        problem(await api.client.get(SESSIONS, params=wrong), 422, "invalid-request")


@pytest.mark.parametrize(
    ("state", "pointer"),
    [
        ({}, ""),
        ({"cookies": "hunter2"}, "/cookies"),
        ({"cookies": [{"name": "sid", "value": "hunter2"}]}, "/cookies/0"),
        ({"cookies": [], "origins": [{"origin": "hunter2"}]}, "/origins/0/origin"),
        (
            {"origins": [{"origin": "https://a", "localStorage": [{"name": "hunter2"}]}]},
            "/origins/0/localStorage/0/value",
        ),
    ],
)
async def test_an_invalid_storage_state_is_refused_with_a_pointer(api: "Api", state: Any, pointer: str) -> None:
    found = problem(await put(api, state=state), 422, "invalid-request")
    assert found["errors"][0]["pointer"] == pointer
    assert (await api.client.get(SESSIONS)).json()["sessions"] == []


@pytest.mark.parametrize("name", ["-x", "a%20b", "a%00", "%C3%A4", "x" * 201, ".x"])
async def test_an_invalid_name_is_refused(api: "Api", name: str) -> None:
    problem(await put(api, name), 422, "invalid-session")
    for response in (await api.client.get(f"{SESSIONS}/{name}"), await api.client.delete(f"{SESSIONS}/{name}")):
        problem(response, 404, "unknown-session")


async def test_sessions_have_their_own_size_limit(api: "Api") -> None:
    def of(size: int) -> dict[str, Any]:
        return {
            "cookies": [],
            "origins": [{"origin": "https://a", "localStorage": [{"name": "n", "value": "v" * size}]}],
        }

    assert (await put(api, state=of(MAX_BYTES - 1000))).status_code == 201
    problem(await put(api, state=of(MAX_BYTES)), 413, "too-large")


async def test_without_a_secret_key_nothing_is_imported(settings: CplaneSettings) -> None:
    settings = settings.model_copy(update={"secret_key": None})
    async with (
        open_server(create_app(settings), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        found = problem(await client.put(f"{SESSIONS}/shop", json=STATE), 503, "secret-key-missing")
        assert "cplane secret" in found["hint"]
        assert (await client.get(SESSIONS)).json() == {"sessions": [], "next": None}


async def test_another_method_returns_405(api: "Api") -> None:
    response = await api.client.post(f"{SESSIONS}/shop", json=STATE)
    problem(response, 405, "method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}
