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
from cplane.web.handlers.docs import docs_routes
from cplane.web.middleware import Authentication, RequestLog
from cplane.web.operations import OPERATIONS
from cplane.web.origins import SameOriginOnly
from cplane.web.problems import HANDLED_ERRORS, handle_error
from cplane.web.routing import ExactPathDispatch, resources, routes


def create_app(settings: CplaneSettings | None = None, *, plane: ControlPlane | None = None) -> Starlette:
    """Create the HTTP API. Also a factory for an ASGI server: `uvicorn --factory cplane.web:create_app`.

    Args:
        settings: default: those of `plane`, else CPLANE_* variables.
        plane: an open control plane to use. Without one the app opens its own for its lifetime.

    Returns:
        An ASGI app. Its lifespan imports the modules of `settings.imports`, and opens the control plane if none was
        given.

    Raises:
        InvalidSettings: a variable is missing or invalid.

    Example:
        Serve it next to other code, in one event loop:

            async with open_server(create_app(), "127.0.0.1", 8000) as server:
                print(server.url)
                await server.ended()
    """
    settings = settings or (plane.settings if plane is not None else load_settings())
    by_path = resources(OPERATIONS)
    app = _Api(
        routes=[*routes(by_path), *docs_routes()],
        middleware=[
            Middleware(RequestLog),
            _guard(settings),
            Middleware(ExactPathDispatch, resources=by_path),
        ],
        exception_handlers=dict.fromkeys(HANDLED_ERRORS, handle_error),
        lifespan=_lifespan,
    )
    app.router.redirect_slashes = False  # one resource, one path
    app.state.settings = settings
    app.state.plane = plane
    app.state.stopping = asyncio.Event()  # never set, unless open_server replaces it with its own
    return app


def _guard(settings: CplaneSettings) -> Middleware:
    """Return what decides whether a request is served: keys, or, without keys, where the request comes from."""
    if settings.api_keys:
        return Middleware(Authentication, keys=settings.api_keys)
    return Middleware(SameOriginOnly, allowed_hosts=settings.allowed_hosts)


class _Api(Starlette):
    """Starlette without ServerErrorMiddleware, which wraps every response: RequestLog handles unexpected errors."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return Starlette's middleware stack without its outermost layer."""
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
    """Import all jobs now, so that a module that cannot be imported fails the start, not the first request."""
    _ = plane.catalog
