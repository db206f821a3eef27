"""A request as the handlers see it: the plane at hand, a deadline over it, query and headers checked."""

import asyncio
from collections import Counter
from functools import cache
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from cplane.plane.control_plane import ControlPlane
from cplane.settings import CplaneSettings
from cplane.web.deadlines import Deadline
from cplane.web.problems import INVALID_REQUEST, FieldError, RequestProblem

ANSWER_S = 5.5
"""Every answer comes within 6 seconds, whatever has failed; a wait the client asked for comes on top."""

BODY_S = 30.0
"""How long a body may take to come."""

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
        """The settings the app was made with."""
        settings: CplaneSettings = self.scope["app"].state["settings"]
        return settings

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the server stops: nobody waits for a job any longer."""
        return cast("asyncio.Event", self.app.state.stopping)

    deadline: Deadline
    """Entered around the handler; what it interrupts is answered with 503."""

    def allow(self, seconds: float) -> None:
        """Move the deadline to `seconds`, and the time of an answer, from now."""
        self.deadline.allow(seconds + ANSWER_S)

    _first: dict[bytes, bytes] | None = None
    """Of each header the first."""

    def header(self, name: str) -> str | None:
        """The first header of that name, which is given in small letters."""
        if self._first is None:
            self._first = dict(reversed(self.scope["headers"]))
        value = self._first.get(name.encode())
        return None if value is None else str(value, "latin-1")

    def link(self, path: str) -> str:
        """A path of this app as the client has to ask for it."""
        return f"{self.scope.get('root_path', '')}{path}"

    def query(self, model: type[QueryT]) -> QueryT:
        """The query parameters; an unknown, repeated or wrong one is a problem that names it."""
        if not self.scope["query_string"]:
            return cast("QueryT", _unasked(model))
        items = self.query_params.multi_items()
        values = dict(items)
        if len(values) < len(items):
            times = Counter(name for name, _ in items)
            raise _invalid(
                [FieldError(parameter=name, detail="given more than once") for name in times if times[name] > 1]
            )
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise _invalid(
                [
                    FieldError(parameter=str(fault["loc"][0]), detail=_sentence(fault["type"], fault["msg"], model))
                    for fault in error.errors(include_url=False, include_input=False)
                ]
            ) from None

    def idempotency_key(self) -> str | None:
        """The header Idempotency-Key, in quotes (as the IETF draft has it) or without."""
        if self.header("idempotency-key") is None:
            return None
        given = self.headers.getlist("idempotency-key")
        key = given[0][1:-1] if given[0].startswith('"') and given[0].endswith('"') else given[0]
        if len(given) > 1 or not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
            detail = f"one key of 1 to {MAX_KEY_LENGTH} printable ASCII characters"
            raise _invalid([FieldError(header="Idempotency-Key", detail=detail)])
        return key


def not_for_transient(job: str) -> RequestProblem:
    """The problem of an idempotency key for a job without records."""
    detail = f"'{job}' keeps no record that a key could lead to; leave the key out"
    return _invalid([FieldError(header="Idempotency-Key", detail=detail)])


def not_to_be_waited_for(reason: str) -> RequestProblem:
    """The problem of a wait for a job that keeps no result."""
    return _invalid([FieldError(parameter="wait", detail=f"{reason}; leave the wait out")])


@cache
def _unasked(model: type[BaseModel]) -> BaseModel:
    """What a query says that says nothing; the models have no parameter that must be given."""
    return model()


def _sentence(kind: str, message: str, model: type[BaseModel]) -> str:
    if kind == "extra_forbidden":
        return f"there is no such parameter; known: {', '.join(model.model_fields)}"
    return message.removeprefix("Value error, ")


def _invalid(faults: list[FieldError]) -> RequestProblem:
    first = faults[0]
    return RequestProblem(INVALID_REQUEST, f"{first.parameter or first.header}: {first.detail}", errors=faults)
