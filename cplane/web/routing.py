"""Operations as data, and the resources they form: one path, its methods, and a deadline for each request."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cplane.web.deadlines import Deadlines
from cplane.web.problems import HANDLED_ERRORS, METHOD_NOT_ALLOWED, ProblemType, RequestProblem, handle_error
from cplane.web.request import BODY_TIMEOUT_S, RESPONSE_TIMEOUT_S, ApiRequest

Handler = Callable[[ApiRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A successful response of an operation, for the OpenAPI document."""

    description: str
    model: type[BaseModel] | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Header name → description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path: its handler, and its description in the OpenAPI document."""

    method: str
    path: str
    id: str
    handler: Handler
    summary: str
    responses: Mapping[int, ResponseSpec]
    """Status → response."""
    description: str = ""
    query: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Request header name → description."""
    body: type[BaseModel] | None = None
    problems: Sequence[ProblemType] = ()
    tag: str = "jobs"


class Resource:
    """An ASGI app for one path. HEAD comes with GET; OPTIONS and the 405 of any other method list the methods."""

    def __init__(
        self, handlers: Mapping[str, Handler], with_body: Collection[str] = (), deadlines: Deadlines | None = None
    ) -> None:
        self._handlers = dict(handlers)
        self._with_body = frozenset(with_body)
        self._deadlines = deadlines or Deadlines()
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]
        self._handlers["OPTIONS"] = self._options
        self._allow = ", ".join(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. The deadline, which `read_body` moves, covers the handler, not the transmission."""
        request, method = ApiRequest(scope, receive, send), scope["method"]
        request.deadline = self._deadlines.after(BODY_TIMEOUT_S if method in self._with_body else RESPONSE_TIMEOUT_S)
        try:
            with request.deadline:
                response = await self._handlers.get(method, self._refuse)(request)
        except HANDLED_ERRORS as error:
            response = await handle_error(request, error)
        await response(scope, receive, send)

    async def _options(self, _: ApiRequest) -> Response:
        return Response(status_code=204, headers={"allow": self._allow})

    async def _refuse(self, _: ApiRequest) -> Response:
        raise RequestProblem(METHOD_NOT_ALLOWED, f"use {self._allow}", headers={"allow": self._allow})


class ExactPathDispatch:
    """Middleware that looks up resources without path parameters; other requests go through the routes."""

    def __init__(self, app: ASGIApp, resources: Mapping[str, Resource]) -> None:
        self._app = app
        self._resources = {path: resource for path, resource in resources.items() if "{" not in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or pass it on."""
        exact = scope["type"] == "http" and not scope.get("root_path")
        await (self._resources.get(scope["path"], self._app) if exact else self._app)(scope, receive, send)


def resources(operations: Sequence[Operation]) -> dict[str, Resource]:
    """Return one resource for each path; all share one set of deadlines."""
    deadlines = Deadlines()
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    return {
        path: Resource(
            {operation.method: operation.handler for operation in group},
            [operation.method for operation in group if operation.body is not None],
            deadlines,
        )
        for path, group in by_path.items()
    }


def routes(by_path: Mapping[str, Resource]) -> list[BaseRoute]:
    """Return one route for each path."""
    return [Route(path, resource, name=path) for path, resource in by_path.items()]
