"""Operations as data, and the resources they make: one path, its methods, a deadline over each answer."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cplane.web.deadlines import Deadlines
from cplane.web.problems import EXPECTED, METHOD, ProblemType, RequestProblem, handle
from cplane.web.request import ANSWER_S, BODY_S, ApiRequest

Handler = Callable[[ApiRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One way an operation ends well."""

    about: str
    model: type[BaseModel] | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Header name → what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path: what serves it, and what the OpenAPI document says of it."""

    method: str
    path: str
    id: str
    handler: Handler
    summary: str
    answers: Mapping[int, Answer]
    query: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: type[BaseModel] | None = None
    problems: Sequence[ProblemType] = ()
    tag: str = "jobs"


class Resource:
    """An ASGI app for one path. HEAD comes with GET; OPTIONS names the methods; another method is a problem that does, too."""

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
        """Serve one request; the deadline covers the handler, not the sending of its answer. `read_body` moves it once a body is there."""
        request, method = ApiRequest(scope, receive, send), scope["method"]
        request.deadline = self._deadlines.after(BODY_S if method in self._with_body else ANSWER_S)
        try:
            with request.deadline:
                response = await self._handlers.get(method, self._refuse)(request)
        except EXPECTED as error:
            response = await handle(request, error)
        await response(scope, receive, send)

    async def _options(self, _: ApiRequest) -> Response:
        return Response(status_code=204, headers={"allow": self._allow})

    async def _refuse(self, _: ApiRequest) -> Response:
        raise RequestProblem(METHOD, f"use {self._allow}", headers={"allow": self._allow})


class ExactPathDispatch:
    """Finds a resource whose path has no parameters by the path alone; every other request goes the way of the routes."""

    def __init__(self, app: ASGIApp, resources: Mapping[str, Resource]) -> None:
        self._app = app
        self._resources = {path: resource for path, resource in resources.items() if "{" not in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or pass it on."""
        direct = scope["type"] == "http" and not scope.get("root_path")
        await (self._resources.get(scope["path"], self._app) if direct else self._app)(scope, receive, send)


def resources(operations: Sequence[Operation]) -> dict[str, Resource]:
    """One resource for each path."""
    deadlines = Deadlines()
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    return {
        path: Resource(
            {operation.method: operation.handler for operation in served},
            [operation.method for operation in served if operation.body is not None],
            deadlines,
        )
        for path, served in by_path.items()
    }


def routes(by_path: Mapping[str, Resource]) -> list[BaseRoute]:
    """One route for each path."""
    return [Route(path, resource, name=path) for path, resource in by_path.items()]
