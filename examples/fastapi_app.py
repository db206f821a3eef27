"""A FastAPI application whose handlers submit browser jobs: 202 at once, the result under the job's own address.

The web process opens one `ControlPlane` for its lifetime. It runs no job: workers do. `pip install fastapi`, run it in two
terminals, then call it:

    $ cplane dev examples/fastapi_app.py
    $ uvicorn --app-dir examples --port 8001 fastapi_app:app

    $ curl -i localhost:8001/titles -H 'content-type: application/json' -d '{"url": "http://localhost:8001/docs"}'
    $ curl 'localhost:8001/titles/THE-ID?wait=30'
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from playwright.async_api import Page
from pydantic import BaseModel, HttpUrl

from cplane import ControlPlane, State, job
from cplane.errors import RecordNotFound


@job(queue="browser", timeout=60, retries=2)
async def title(page: Page, url: HttpUrl) -> str:
    """The title of a page, after its scripts have run."""
    await page.goto(str(url))
    return await page.title()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, ControlPlane]]:
    """The control plane is open as long as the application runs."""
    async with ControlPlane() as plane:
        yield {"plane": plane}


app = FastAPI(lifespan=lifespan)


def control_plane(request: Request) -> ControlPlane:
    """What `lifespan` opened, for handlers that ask for it."""
    plane: ControlPlane = request.state.plane
    return plane


@app.exception_handler(RecordNotFound)
async def not_found(_: Request, error: Exception) -> JSONResponse:
    """An id that no job has."""
    return JSONResponse({"detail": str(error)}, 404)


class TitleRequest(BaseModel):
    """The body of POST /titles."""

    url: HttpUrl


class TitleStatus(BaseModel):
    """How far a job is: `title` once it succeeded, `error` once it failed."""

    id: UUID
    state: State
    title: str | None = None
    error: str | None = None


@app.post("/titles", status_code=202)
async def submit_title(
    body: TitleRequest, response: Response, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
) -> TitleStatus:
    """Submit the job and return at once. A request that is repeated with its Idempotency-Key gets the first job."""
    handle = await title.using(key=idempotency_key).submit(body.url)
    response.headers["location"] = app.url_path_for("read_title", job_id=str(handle.id))
    return TitleStatus(id=handle.id, state=await handle.state())


@app.get("/titles/{job_id}")
async def read_title(
    job_id: UUID, plane: Annotated[ControlPlane, Depends(control_plane)], wait: Annotated[float, Query(ge=0, le=30)] = 0
) -> TitleStatus:
    """Read the job, after waiting up to `wait` seconds for its end."""
    try:
        record = await plane.wait(job_id, timeout=wait)
    except TimeoutError:
        record = await plane.job(job_id)
    return TitleStatus.model_validate(
        {"id": job_id, "state": record.state, "title": record.result, "error": record.error_message}
    )
