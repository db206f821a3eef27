"""The API's own documentation: the OpenAPI document, Swagger UI from bundled files, the types of problems."""

import asyncio
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cplane.jobs.definition import AnyJob
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
"""The page loads and runs bundled files only."""


async def openapi(request: ApiRequest) -> Response:
    """Return the OpenAPI document."""
    jobs = tuple(job for _, job in sorted(request.plane.catalog.jobs.items()))
    secured = bool(request.settings.api_keys)
    spec = await asyncio.to_thread(_encoded_document, jobs, request.link(""), secured)
    return Response(spec, media_type="application/json")


@lru_cache(maxsize=4)
def _encoded_document(jobs: tuple[AnyJob, ...], root_path: str, secured: bool) -> bytes:
    """Return the OpenAPI document as JSON. It takes about a second to make, in which other threads are slow."""
    return json.dumps(document(jobs, root_path=root_path, secured=secured)).encode()


async def docs(_: ApiRequest) -> Response:
    """Return the page of Swagger UI."""
    return FileResponse(STATIC / "docs.html", headers=PAGE_HEADERS)


async def home(request: ApiRequest) -> Response:
    """Redirect to the documentation."""
    return RedirectResponse(request.link("/docs"))


async def problem_type(request: ApiRequest) -> Response:
    """Return the meaning of a problem type, as text."""
    found = BY_SLUG.get(request.path_params["slug"])
    if found is None:
        raise RequestProblem(NOT_FOUND, "there is no such problem type")
    return PlainTextResponse(f"{found.title} ({found.status})\n\n{found.description}\n")


PAGES: Mapping[str, Handler] = {"/": home, "/docs": docs, "/openapi.json": openapi, "/problems/{slug}": problem_type}


def docs_routes() -> list[BaseRoute]:
    """Return the routes of the documentation and of its static files."""
    return [
        *(Route(path, Resource({"GET": handler}), name=path) for path, handler in PAGES.items()),
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
    ]
