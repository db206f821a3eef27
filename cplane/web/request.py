"""A request as handlers see it: the control plane, a deadline, and validated query, path and headers."""

import asyncio
from collections import Counter
from functools import cache
from typing import TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from cplane.errors import RecordNotFound
from cplane.plane.control_plane import ControlPlane
from cplane.settings import CplaneSettings
from cplane.web.deadlines import Deadline
from cplane.web.problems import INVALID_REQUEST, FieldError, RequestProblem

RESPONSE_TIMEOUT_S = 5.5
"""Every response comes within 6 seconds, whatever has failed. A `wait` that the client asked for is added."""

BODY_TIMEOUT_S = 30.0
"""How long a body may take to arrive."""

MAX_KEY_LENGTH = 255

QueryT = TypeVar("QueryT", bound=BaseModel)


class ApiRequest(Request):
    """A request under a deadline."""

    @property
    def plane(self) -> ControlPlane:
        """The open control plane."""
        plane: ControlPlane = self.scope["app"].state["plane"]
        return plane

    @property
    def settings(self) -> CplaneSettings:
        """The settings the app was created with."""
        settings: CplaneSettings = self.scope["app"].state["settings"]
        return settings

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the server stops: waits for jobs must end."""
        return cast("asyncio.Event", self.app.state.stopping)

    deadline: Deadline
    """Entered around the handler; when it expires, the response is a 503."""

    def move_deadline(self, seconds: float) -> None:
        """Move the deadline to `seconds` plus `RESPONSE_TIMEOUT_S` from now."""
        self.deadline.reschedule(seconds + RESPONSE_TIMEOUT_S)

    _headers_by_name: dict[bytes, bytes] | None = None
    """The first value of each header."""

    def header(self, name: str) -> str | None:
        """Return the first value of a header, None if it is missing. `name` must be in lower case."""
        if self._headers_by_name is None:
            self._headers_by_name = dict(reversed(self.scope["headers"]))
        value = self._headers_by_name.get(name.encode())
        return None if value is None else str(value, "latin-1")

    def link(self, path: str) -> str:
        """Return a path of this app as the client has to request it, with the mount point in front."""
        return f"{self.scope.get('root_path', '')}{path}"

    def record_id(self) -> UUID:
        """Return the path parameter `id`.

        Raises:
            RecordNotFound: it is not a UUID in its usual form.
        """
        given: str = self.path_params["id"]
        try:
            record_id = UUID(given)
        except ValueError:
            record_id = None
        if record_id is None or str(record_id) != given.lower():
            raise RecordNotFound(f"there is no job with the id '{given}'", hint="ids are UUIDs")
        return record_id

    def query(self, model: type[QueryT]) -> QueryT:
        """Return the query parameters, validated by `model`.

        Raises:
            RequestProblem: 422 that names each unknown, repeated or invalid parameter.
        """
        if not self.scope["query_string"]:
            return cast("QueryT", _empty_query(model))
        items = self.query_params.multi_items()
        values = dict(items)
        if len(values) < len(items):
            counts = Counter(name for name, _ in items)
            raise _invalid(
                [FieldError(parameter=name, detail="given more than once") for name in counts if counts[name] > 1]
            )
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise _invalid(
                [
                    FieldError(parameter=str(each["loc"][0]), detail=_detail(each["type"], each["msg"], model))
                    for each in error.errors(include_url=False, include_input=False)
                ]
            ) from None

    def idempotency_key(self) -> str | None:
        """Return the header Idempotency-Key, in quotes (as the IETF draft specifies) or without; None if it is missing.

        Raises:
            RequestProblem: 422, it is not one key of 1 to 255 printable ASCII characters.
        """
        if self.header("idempotency-key") is None:
            return None
        given = self.headers.getlist("idempotency-key")
        key = given[0][1:-1] if given[0].startswith('"') and given[0].endswith('"') else given[0]
        if len(given) > 1 or not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
            detail = f"one key of 1 to {MAX_KEY_LENGTH} printable ASCII characters is accepted"
            raise _invalid([FieldError(header="Idempotency-Key", detail=detail)])
        return key


def key_not_supported(job: str) -> RequestProblem:
    """Return the problem of an idempotency key for a job without records."""
    detail = f"'{job}' keeps no record that a key could lead to; omit the key"
    return _invalid([FieldError(header="Idempotency-Key", detail=detail)])


def wait_not_supported(reason: str) -> RequestProblem:
    """Return the problem of a wait for a job that keeps no result."""
    return _invalid([FieldError(parameter="wait", detail=f"{reason}; omit wait")])


@cache
def _empty_query(model: type[BaseModel]) -> BaseModel:
    """Return the model of an empty query; no model has a required parameter."""
    return model()


def _detail(error_type: str, message: str, model: type[BaseModel]) -> str:
    if error_type == "extra_forbidden":
        return f"there is no such parameter; known: {', '.join(model.model_fields)}"
    return message.removeprefix("Value error, ")


def _invalid(field_errors: list[FieldError]) -> RequestProblem:
    first = field_errors[0]
    return RequestProblem(INVALID_REQUEST, f"{first.parameter or first.header}: {first.detail}", errors=field_errors)
