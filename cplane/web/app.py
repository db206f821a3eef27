"""The Starlette app: routes, middleware and lifespan, as data."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from cplane.plane.control_plane import ControlPlane
from cplane.settings import CplaneSettings, load_settings
from cplane.web.handlers.docs import pages
from cplane.web.middleware import Authentication, RequestLog
from cplane.web.operations import OPERATIONS
from cplane.web.problems import EXPECTED, handle
from cplane.web.routing import ExactPathDispatch, resources, routes


def create_app(settings: CplaneSettings | None = None, *, plane: ControlPlane | None = None) -> Starlette:
    """The HTTP API. Also a factory for an ASGI server: `uvicorn --factory cplane.web:create_app`.

    Args:
        settings: default: those of the plane, else CPLANE_* variables.
        plane: an open plane to use; without one the app opens its own for its lifetime.

    Raises:
        InvalidSettings: a variable is missing or wrong.
    """
    settings = settings or (plane.settings if plane is not None else load_settings())
    served = resources(OPERATIONS)
    app = _Api(
        routes=[*routes(served), *pages()],
        middleware=[
            Middleware(RequestLog),
            *([Middleware(Authentication, keys=settings.api_keys)] if settings.api_keys else []),
            Middleware(ExactPathDispatch, resources=served),
        ],
        exception_handlers=dict.fromkeys(EXPECTED, handle),
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False  # one resource, one path
    app.state.settings = settings
    app.state.plane = plane
    app.state.stopping = asyncio.Event()  # never set, unless open_server puts its own here
    return app


class _Api(Starlette):
    """Starlette without its own answer to what nobody expected, which every answer passes: RequestLog gives it."""

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's, from the second on."""
        outermost: Any = super().build_middleware_stack()
        return cast("ASGIApp", outermost.app)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncGenerator[None]:
    if app.state.plane is not None:
        _import_jobs(app.state.plane)
        yield
        return
    async with ControlPlane(app.state.settings) as plane:
        _import_jobs(plane)
        app.state.plane = plane
        try:
            yield
        finally:
            app.state.plane = None


def _import_jobs(plane: ControlPlane) -> None:
    """A module that cannot be imported ends the start, not the first request."""
    _ = plane.catalog
