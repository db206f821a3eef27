"""Errors over HTTP as RFC 9457 problem+json: one table from exception to status, never a traceback."""

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
"""Value of Retry-After in every 503."""

MAX_FIELD_ERRORS = 20
"""Maximum number of field errors in a response: a body can be wrong in a hundred thousand places."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A type of problem. Its URI, `/problems/{slug}`, is stable, and returns `title` and `description`."""

    slug: str
    status: int
    title: str
    description: str

    @property
    def uri(self) -> str:
        """The `type` member of a problem."""
        return f"/problems/{self.slug}"


NOT_JSON = ProblemType(
    "not-json", 400, "The body is not JSON", "Send one JSON object in UTF-8, nested at most 200 levels deep."
)
UNAUTHORIZED = ProblemType(
    "unauthorized",
    401,
    "An API key is required",
    "Send `Authorization: Bearer KEY` with one of the keys in CPLANE_API_KEYS.",
)
HOST_NOT_ALLOWED = ProblemType(
    "host-not-allowed",
    403,
    "The Host header is not a name of this server",
    "Without CPLANE_API_KEYS only the names of loopback and those in CPLANE_ALLOWED_HOSTS are served.",
)
CROSS_ORIGIN = ProblemType(
    "cross-origin",
    403,
    "A page of another origin sent the request",
    "Without CPLANE_API_KEYS only pages of this server, and clients that are no browser, may change something.",
)
NOT_FOUND = ProblemType("not-found", 404, "There is no such resource", "No resource has this path. /docs lists them.")
UNKNOWN_ID = ProblemType(
    "unknown-id", 404, "There is no such job", "No record has this id. GET /api/v1/jobs lists the records."
)
UNKNOWN_ARTIFACT = ProblemType(
    "unknown-artifact",
    404,
    "There is no such artifact",
    "The job has no artifact of this name. Its record lists its artifacts.",
)
UNKNOWN_SESSION = ProblemType(
    "unknown-session", 404, "There is no such session", "GET /api/v1/sessions lists the sessions."
)
METHOD_NOT_ALLOWED = ProblemType(
    "method-not-allowed", 405, "The method is not allowed", "The Allow header names the methods of this resource."
)
SLOW_BODY = ProblemType("slow-body", 408, "The body did not arrive in time", "Send the whole body within 30 seconds.")
INVALID_TRANSITION = ProblemType(
    "invalid-transition",
    409,
    "The job's state does not allow this",
    "Queued and running jobs can be cancelled; failed and cancelled ones can be retried.",
)
IDEMPOTENCY_KEY_IN_USE = ProblemType(
    "idempotency-key-in-use",
    409,
    "A request with this idempotency key is in flight",
    "Send it again in a moment: the response is then that of the first request.",
)
SESSION_IN_USE = ProblemType(
    "session-in-use",
    409,
    "A running job holds the session",
    "Try again when the job has ended, or cancel it. Only that job may change the session while it holds it.",
)
TOO_LARGE = ProblemType(
    "too-large",
    413,
    "The body is too large",
    "CPLANE_MAX_BODY_BYTES sets the limit; for a session it is 5 MiB. Pass large data by reference.",
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported-media-type",
    415,
    "The media type of the body is not supported",
    "Send `Content-Type: application/json`, UTF-8, not compressed.",
)
INVALID_REQUEST = ProblemType(
    "invalid-request",
    422,
    "The request is invalid",
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
IDEMPOTENCY_KEY_REUSED = ProblemType(
    "idempotency-key-reused",
    422,
    "The idempotency key belongs to another request",
    "A key identifies one job with its arguments and options. Use a new key for a new request.",
)
INVALID_SESSION = ProblemType(
    "invalid-session",
    422,
    "The session is invalid",
    "Send Playwright's storage_state under a name of letters, digits, '_', '.', ':', '@', '-'. "
    "`errors` points into the body.",
)
INTERNAL_ERROR = ProblemType(
    "internal-error",
    500,
    "An unexpected error occurred",
    "It is a bug in the server; the details are in its log. The request may have taken effect.",
)
DATABASE_UNAVAILABLE = ProblemType(
    "database-unavailable",
    503,
    "Postgres is unavailable",
    "Try again; with an Idempotency-Key that is always safe.",
)
QUEUE_UNAVAILABLE = ProblemType("queue-unavailable", 503, "Redis is unavailable", "Try again.")
ARTIFACTS_UNAVAILABLE = ProblemType(
    "artifacts-unavailable",
    503,
    "The artifact store is unavailable",
    "Try again; the file may also be missing from the store.",
)
SCHEMA_MISMATCH = ProblemType(
    "schema-mismatch",
    503,
    "The tables are of another version",
    "The operator of this server must run `cplane db upgrade`.",
)
SECRET_KEY_MISSING = ProblemType(
    "secret-key-missing",
    503,
    "There is no key to encrypt with",
    "The operator of this server must set CPLANE_SECRET_KEY; `cplane secret` prints a key.",
)
TIMED_OUT = ProblemType(
    "no-answer-in-time",
    503,
    "The request timed out",
    "Try again; with an Idempotency-Key that is always safe.",
)

PROBLEM_TYPES: Mapping[type[CplaneError], ProblemType] = {
    UnknownJob: UNKNOWN_JOB,
    InvalidArguments: INVALID_ARGUMENTS,
    IdempotencyConflict: IDEMPOTENCY_KEY_REUSED,
    KeyInUse: IDEMPOTENCY_KEY_IN_USE,
    RecordNotFound: UNKNOWN_ID,
    ArtifactNotFound: UNKNOWN_ARTIFACT,
    InvalidTransition: INVALID_TRANSITION,
    SessionNotFound: UNKNOWN_SESSION,
    SessionInUse: SESSION_IN_USE,
    SessionTooLarge: TOO_LARGE,
    InvalidSession: INVALID_SESSION,
    SecretKeyMissing: SECRET_KEY_MISSING,
    DatabaseUnavailable: DATABASE_UNAVAILABLE,
    QueueUnavailable: QUEUE_UNAVAILABLE,
    ArtifactsUnavailable: ARTIFACTS_UNAVAILABLE,
    SchemaMismatch: SCHEMA_MISMATCH,
}
"""Error class → problem type. A CplaneError that is missing here is an internal error."""

BY_SLUG: Mapping[str, ProblemType] = {
    problem_type.slug: problem_type
    for problem_type in (
        *(NOT_JSON, UNAUTHORIZED, HOST_NOT_ALLOWED, CROSS_ORIGIN, NOT_FOUND, METHOD_NOT_ALLOWED, SLOW_BODY, TOO_LARGE),
        *(UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, INTERNAL_ERROR, TIMED_OUT),
        *PROBLEM_TYPES.values(),
    )
}
"""Every problem type by its slug."""


class FieldError(BaseModel):
    """One error and its location: exactly one of `pointer`, `parameter` and `header` is present."""

    detail: str
    pointer: str | None = Field(default=None, description="JSON Pointer into the body, for example /args/url")
    parameter: str | None = Field(default=None, description="name of a query parameter")
    header: str | None = Field(default=None, description="name of a request header")


class ProblemView(BaseModel):
    """An error in the format of RFC 9457, with a hint and a list of field errors where there are any."""

    type: str = Field(description="stable URI of the problem type; it can be opened and returns its meaning")
    title: str
    status: int
    detail: str = Field(description="what is wrong with this request, in one sentence")
    instance: str = Field(description="path of the request")
    hint: str | None = Field(default=None, description="what to do next")
    errors: list[FieldError] | None = Field(default=None, description="field errors of a 422, at most 20")


@dataclass(eq=False)
class RequestProblem(Exception):
    """Raised by a handler for a request that it cannot serve."""

    problem_type: ProblemType
    detail: str
    hint: str | None = None
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def json_pointer(location: Sequence[int | str]) -> str:
    """Return a JSON Pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def problem_response(path: str, problem: RequestProblem) -> Response:
    """Return the response for a problem with the request for `path`."""
    problem_type = problem.problem_type
    view = ProblemView(
        type=problem_type.uri,
        title=problem_type.title,
        status=problem_type.status,
        detail=problem.detail,
        instance=path,
        hint=problem.hint,
        errors=list(problem.errors[:MAX_FIELD_ERRORS]) or None,
    )
    headers = dict(problem.headers)
    if problem_type.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    response_class = LingeringResponse if problem_type is TOO_LARGE else Response
    # json.dumps escapes whatever is quoted from the request, lone surrogates included
    body = json.dumps(view.model_dump(exclude_none=True)).encode()
    return response_class(body, problem_type.status, headers, MEDIA_TYPE)


def translate(error: Exception) -> RequestProblem | None:
    """Return the problem of an exception, None for an unexpected one."""
    match error:
        case RequestProblem():
            return error
        case CplaneError() if type(error) in PROBLEM_TYPES:
            return RequestProblem(PROBLEM_TYPES[type(error)], error.message, error.hint, _field_errors(error))
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            headers = {"allow": "GET, HEAD"} | {name.lower(): value for name, value in (error.headers or {}).items()}
            return RequestProblem(METHOD_NOT_ALLOWED, f"use {headers['allow']}", headers=headers)
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return RequestProblem(NOT_FOUND, "no resource has this path", hint="see /docs")
        case TimeoutError():
            return RequestProblem(TIMED_OUT, "Postgres, Redis or the artifact store took too long")
        case _:
            return None


def _field_errors(error: CplaneError) -> list[FieldError]:
    if isinstance(error, UnknownJob):
        return [FieldError(pointer="/job", detail=error.message)]
    if isinstance(error, InvalidArguments):
        field_errors = [
            FieldError(pointer=f"/args{problem.path}", detail=problem.message)
            for problem in error.problems[:MAX_FIELD_ERRORS]
        ]
        return field_errors or [FieldError(pointer=f"/{error.option or 'args'}", detail=error.message)]
    if isinstance(error, InvalidSession):
        return [FieldError(pointer=problem.path, detail=problem.message) for problem in error.problems]
    return []


async def handle_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for all of HANDLED_ERRORS. An unexpected error is raised again, to be logged."""
    problem = translate(error)
    if problem is None:
        raise error
    return problem_response(request.url.path, problem)


HANDLED_ERRORS: tuple[type[Exception], ...] = (RequestProblem, HTTPException, TimeoutError, *PROBLEM_TYPES)
