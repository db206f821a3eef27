"""What describes the API over HTTP: the OpenAPI document, Swagger UI from our own files, the kinds of problems."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cplane.web.openapi import document
from cplane.web.problems import BY_SLUG, NOT_FOUND, RequestProblem
from cplane.web.request import ApiRequest
from cplane.web.routing import Handler, Resource

STATIC = Path(__file__).parents[1] / "static"

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""A page of ours loads and runs our files alone."""


async def openapi(request: ApiRequest) -> Response:
    """The OpenAPI document."""
    jobs = [job for _, job in sorted(request.plane.catalog.jobs.items())]
    secured = bool(request.settings.api_keys)
    spec = await asyncio.to_thread(document, jobs, root_path=request.link(""), secured=secured)
    return Response(json.dumps(spec), media_type="application/json")


async def docs(_: ApiRequest) -> Response:
    """Swagger UI."""
    return FileResponse(STATIC / "docs.html", headers=PAGE_HEADERS)


async def home(request: ApiRequest) -> Response:
    """The way to the documentation."""
    return RedirectResponse(request.link("/docs"))


async def problem(request: ApiRequest) -> Response:
    """What a kind of problem means."""
    kind = BY_SLUG.get(request.path_params["slug"])
    if kind is None:
        raise RequestProblem(NOT_FOUND, "there is no such kind of problem")
    return PlainTextResponse(f"{kind.title} ({kind.status})\n\n{kind.about}\n")


PAGES: Mapping[str, Handler] = {"/": home, "/docs": docs, "/openapi.json": openapi, "/problems/{slug}": problem}


def pages() -> list[BaseRoute]:
    """The routes of the pages and their files."""
    return [
        *(Route(path, Resource({"GET": handler}), name=path) for path, handler in PAGES.items()),
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
    ]
