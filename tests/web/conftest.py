"""A real server on a real socket, real Postgres and Redis, jobs to submit, and a fake worker that changes records."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, TypedDict
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio
from pydantic import AfterValidator, BaseModel, HttpUrl, JsonValue, SecretStr
from pydantic_core import to_json

from cplane import Context, ControlPlane, CplaneSettings, State, job
from cplane.jobs.states import AttemptState
from cplane.keyring import new_key
from cplane.postgres.rows import Finish, Started
from cplane.redis.events import Event
from cplane.runtime.error_text import Error
from cplane.web import create_app, open_server

JOBS = "/api/v1/jobs"


class Size(BaseModel):
    width: int
    height: int = 600


class Options(TypedDict, total=False):
    quality: int


@job
async def web_add(x: int, y: int = 0) -> int:
    """Add two numbers.

    The second one is 0 unless given.
    """
    return x + y


@job(queue="browser", timeout=60, retries=3)
async def web_visit(ctx: Context, url: HttpUrl, size: Size | None = None, tags: tuple[str, ...] = ()) -> Size:
    """Visit a page."""
    return size or Size(width=800)


@job(name="web:any.thing")
def web_any(value: JsonValue = None) -> JsonValue:
    return value


@job
async def web_number(x: float | None = None) -> float | None:
    return x


@job(record=False)
async def web_transient_any(value: JsonValue = None) -> JsonValue:
    return value


@job(name="web_same")
async def web_same_one(size: Size) -> None: ...


def raise_on_13(number: int) -> int:
    if number == 13:
        raise RuntimeError("thirteen, and a password: hunter2")
    return number


@job
async def web_broken(number: Annotated[int, AfterValidator(raise_on_13)]) -> None: ...


class FakeWorker:
    """Changes records as a worker does, without running jobs."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def start(self, record_id: str) -> Started:
        (started,) = await self._plane.store.start("fake", [UUID(record_id)], uuid4().hex, 30)
        return started

    async def succeed(self, started: Started, result: Any = None) -> None:
        finish = Finish(
            id=started.id,
            attempt=started.attempt,
            token=started.token,
            state=State.SUCCEEDED,
            attempt_state=AttemptState.SUCCEEDED,
            result_json=to_json(result),
        )
        await self._finish(finish)

    async def fail(self, started: Started, message: str = "broken") -> None:
        finish = Finish(
            id=started.id,
            attempt=started.attempt,
            token=started.token,
            state=State.FAILED,
            attempt_state=AttemptState.FAILED,
            error=Error("ValueError", message, "Traceback: line 1"),
            failures=1,
        )
        await self._finish(finish)

    async def add_artifact(self, started: Started, name: str, data: bytes, media_type: str | None = None) -> str:
        artifact, path = await self._plane.artifacts.put(started.id, started.attempt, name, data, media_type)
        await self._plane.store.add_artifact(started.id, started.attempt, artifact, path)
        return artifact.sha256

    async def _finish(self, finish: Finish) -> None:
        await self._plane.store.finish([finish])
        await self._plane.events.publish([Event(finish.id, finish.state, finish.attempt)])


class Api:
    """Requests that many tests send."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def submit(self, name: str = "web_add", args: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        body = {"job": name, "args": {"x": 1, "y": 2} if args is None else args, **options}
        response = await self.client.post(JOBS, json=body)
        assert response.status_code == 202, response.text
        record: dict[str, Any] = response.json()
        return record

    async def post_raw(self, body: bytes, content_type: str = "application/json") -> httpx2.Response:
        return await self.client.post(JOBS, content=body, headers={"content-type": content_type})

    async def count_records(self) -> int:
        response = await self.client.get(JOBS, params={"limit": 200})
        assert response.status_code == 200
        return len(response.json()["jobs"])


@pytest.fixture
def settings(settings: CplaneSettings) -> CplaneSettings:
    """Settings with a key for sessions."""
    return settings.model_copy(update={"secret_key": SecretStr(new_key())})


@pytest_asyncio.fixture
async def plane(settings: CplaneSettings) -> AsyncGenerator[ControlPlane]:
    async with ControlPlane(settings) as plane:
        yield plane


@pytest_asyncio.fixture
async def client(plane: ControlPlane) -> AsyncGenerator[httpx2.AsyncClient]:
    async with (
        open_server(create_app(plane=plane), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        yield client


@pytest.fixture
def api(client: httpx2.AsyncClient) -> Api:
    return Api(client)


@pytest.fixture
def fake_worker(plane: ControlPlane) -> FakeWorker:
    return FakeWorker(plane)
