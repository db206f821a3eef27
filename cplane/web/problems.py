"""How errors leave over HTTP: RFC 9457 problem+json, one table from exception to status, never a stack trace."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cplane.errors import (
    ArtifactNotFound,
    ArtifactsUnavailable,
    CplaneError,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidArguments,
    InvalidSession,
    InvalidTransition,
    KeyInUse,
    QueueUnavailable,
    RecordNotFound,
    SchemaMismatch,
    SecretKeyMissing,
    SessionInUse,
    SessionNotFound,
    SessionTooLarge,
    UnknownJob,
)
from cplane.web.lingering_close import LingeringResponse

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5

MAX_FAULTS = 20
"""A body can be wrong in a hundred thousand places; the first ones will do."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem. Its URI, `/problems/{slug}`, never changes and answers `about`."""

    slug: str
    status: int
    title: str
    about: str

    @property
    def uri(self) -> str:
        """What `type` says."""
        return f"/problems/{self.slug}"


NOT_JSON = ProblemType(
    "not-json", 400, "The body is not JSON", "Send one JSON object in UTF-8, nested at most 200 levels deep."
)
UNAUTHORIZED = ProblemType(
    "unauthorized", 401, "A key is needed", "Send `Authorization: Bearer KEY` with one of the keys in CPLANE_API_KEYS."
)
NOT_FOUND = ProblemType(
    "not-found", 404, "There is nothing here", "No resource has this path. /docs lists those there are."
)
UNKNOWN_ID = ProblemType(
    "unknown-id", 404, "There is no such job", "No record has this id. GET /api/v1/jobs lists those there are."
)
UNKNOWN_ARTIFACT = ProblemType(
    "unknown-artifact",
    404,
    "There is no such file",
    "The job left no file of this name. Its record lists those it left.",
)
UNKNOWN_SESSION = ProblemType(
    "unknown-session", 404, "There is no such session", "GET /api/v1/sessions lists those there are."
)
METHOD = ProblemType(
    "method-not-allowed", 405, "The method does not apply", "The Allow header names the methods of this resource."
)
SLOW_BODY = ProblemType("slow-body", 408, "The body did not come in time", "Send the whole body within 30 seconds.")
INVALID_TRANSITION = ProblemType(
    "invalid-transition",
    409,
    "The job's state does not allow this",
    "Queued and running jobs can be cancelled; failed and cancelled ones can be retried.",
)
KEY_IN_USE = ProblemType(
    "idempotency-key-in-use",
    409,
    "A request with this idempotency key is under way",
    "Send it again in a moment: the answer is then that of the first.",
)
SESSION_IN_USE = ProblemType(
    "session-in-use",
    409,
    "A running job holds the session",
    "Try again when the job has ended, or cancel it: nobody else may change a session it works with.",
)
TOO_LARGE = ProblemType(
    "too-large",
    413,
    "The body is too large",
    "CPLANE_MAX_BODY_BYTES sets the limit, for a session it is 5 MiB; pass large data by reference.",
)
MEDIA = ProblemType(
    "unsupported-media-type",
    415,
    "The body is not of a type we read",
    "Send `Content-Type: application/json`, UTF-8, not compressed.",
)
INVALID_REQUEST = ProblemType(
    "invalid-request",
    422,
    "The request does not fit",
    "`errors` names each member (pointer), parameter or header that is wrong.",
)
UNKNOWN_JOB = ProblemType(
    "unknown-job", 422, "There is no job of this name", "GET /api/v1/catalog lists every job with its arguments."
)
INVALID_ARGUMENTS = ProblemType(
    "invalid-arguments",
    422,
    "The arguments do not fit the job",
    "`errors` points into the body; the catalog has each job's JSON Schema.",
)
KEY_REUSED = ProblemType(
    "idempotency-key-reused",
    422,
    "The idempotency key belongs to another request",
    "A key stands for one job with its arguments and options. Use a new key for a new request.",
)
INVALID_SESSION = ProblemType(
    "invalid-session",
    422,
    "This is no session",
    "Send Playwright's storage_state under a name of letters, digits, '_', '.', ':', '@', '-'. `errors` points into the body.",
)
INTERNAL = ProblemType(
    "internal-error",
    500,
    "Something went wrong here",
    "It is our fault and in our log. The request may have taken effect.",
)
DATABASE = ProblemType(
    "database-unavailable", 503, "Postgres did not answer", "Try again; with an Idempotency-Key that is always safe."
)
QUEUE = ProblemType("queue-unavailable", 503, "Redis did not answer", "Try again.")
ARTIFACTS = ProblemType(
    "artifacts-unavailable",
    503,
    "The artifact store did not answer",
    "Try again; the file may also be gone from the store.",
)
SCHEMA = ProblemType(
    "schema-mismatch",
    503,
    "The tables are of another version",
    "Whoever runs this server must run `cplane db upgrade`.",
)
SECRET_KEY = ProblemType(
    "secret-key-missing",
    503,
    "There is no key to encrypt with",
    "Whoever runs this server must set CPLANE_SECRET_KEY; `cplane secret` prints a key.",
)
TOO_SLOW = ProblemType(
    "no-answer-in-time", 503, "No answer came in time", "Try again; with an Idempotency-Key that is always safe."
)

KINDS: Mapping[type[CplaneError], ProblemType] = {
    UnknownJob: UNKNOWN_JOB,
    InvalidArguments: INVALID_ARGUMENTS,
    IdempotencyConflict: KEY_REUSED,
    KeyInUse: KEY_IN_USE,
    RecordNotFound: UNKNOWN_ID,
    ArtifactNotFound: UNKNOWN_ARTIFACT,
    InvalidTransition: INVALID_TRANSITION,
    SessionNotFound: UNKNOWN_SESSION,
    SessionInUse: SESSION_IN_USE,
    SessionTooLarge: TOO_LARGE,
    InvalidSession: INVALID_SESSION,
    SecretKeyMissing: SECRET_KEY,
    DatabaseUnavailable: DATABASE,
    QueueUnavailable: QUEUE,
    ArtifactsUnavailable: ARTIFACTS,
    SchemaMismatch: SCHEMA,
}
"""What each of our errors is over HTTP; one that is not here is an internal error."""

BY_SLUG: Mapping[str, ProblemType] = {
    kind.slug: kind
    for kind in (
        *(NOT_JSON, UNAUTHORIZED, NOT_FOUND, METHOD, SLOW_BODY, TOO_LARGE, MEDIA, INVALID_REQUEST, INTERNAL, TOO_SLOW),
        *KINDS.values(),
    )
}
"""Every kind, by what its URI ends with."""


class FieldError(BaseModel):
    """One thing that is wrong, and where: exactly one of `pointer`, `parameter` and `header` is there."""

    detail: str
    pointer: str | None = Field(default=None, description="JSON Pointer into the body, for example /args/url")
    parameter: str | None = Field(default=None, description="a query parameter")
    header: str | None = Field(default=None, description="a request header")


class ProblemView(BaseModel):
    """An error as RFC 9457 has it, with a hint and the list of faults where there is one."""

    type: str = Field(description="a stable URI that names the kind of problem and answers what it means")
    title: str
    status: int
    detail: str = Field(description="what is wrong this time, in one sentence")
    instance: str = Field(description="the path that was asked for")
    hint: str | None = Field(default=None, description="what to do next")
    errors: list[FieldError] | None = Field(default=None, description="each fault, for 422")


@dataclass(eq=False)
class RequestProblem(Exception):
    """What a handler raises for a request it cannot serve."""

    kind: ProblemType
    detail: str
    hint: str | None = None
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def pointer(location: Sequence[int | str]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def answer(path: str, problem: RequestProblem) -> Response:
    """The response for a problem with the request for `path`."""
    kind = problem.kind
    view = ProblemView(
        type=kind.uri,
        title=kind.title,
        status=kind.status,
        detail=problem.detail,
        instance=path,
        hint=problem.hint,
        errors=list(problem.errors[:MAX_FAULTS]) or None,
    )
    headers = dict(problem.headers)
    if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    respond = LingeringResponse if kind is TOO_LARGE else Response
    # json.dumps escapes whatever a client made us quote, lone surrogates included
    body = json.dumps(view.model_dump(exclude_none=True)).encode()
    return respond(body, kind.status, headers, MEDIA_TYPE)


def translate(error: Exception) -> RequestProblem | None:
    """What an exception is over HTTP; None for one that nobody expected."""
    match error:
        case RequestProblem():
            return error
        case CplaneError() if type(error) in KINDS:
            return RequestProblem(KINDS[type(error)], error.message, error.hint, _faults(error))
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            headers = {"allow": "GET, HEAD"} | {name.lower(): value for name, value in (error.headers or {}).items()}
            return RequestProblem(METHOD, f"use {headers['allow']}", headers=headers)
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return RequestProblem(NOT_FOUND, "no resource has this path", hint="see /docs")
        case TimeoutError():
            return RequestProblem(TOO_SLOW, "a server this one depends on took too long")
        case _:
            return None


def _faults(error: CplaneError) -> list[FieldError]:
    if isinstance(error, UnknownJob):
        return [FieldError(pointer="/job", detail=error.message)]
    if isinstance(error, InvalidArguments):
        problems = [
            FieldError(pointer=f"/args{problem.path}", detail=problem.message)
            for problem in error.problems[:MAX_FAULTS]
        ]
        return problems or [FieldError(pointer="/args", detail=error.message)]
    if isinstance(error, InvalidSession):
        return [FieldError(pointer=problem.path, detail=problem.message) for problem in error.problems]
    return []


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything in EXPECTED; what nobody expected passes, to be logged."""
    problem = translate(error)
    if problem is None:
        raise error
    return answer(request.url.path, problem)


EXPECTED: tuple[type[Exception], ...] = (RequestProblem, HTTPException, TimeoutError, *KINDS)
