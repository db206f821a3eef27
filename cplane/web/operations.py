"""The table of operations. Both the routes and the OpenAPI document are built from it."""

from cplane.sessions.storage_state import SessionState
from cplane.web import problems
from cplane.web.handlers.artifacts import get_artifact
from cplane.web.handlers.catalog import get_catalog
from cplane.web.handlers.health import livez, readyz
from cplane.web.handlers.hosts import list_hosts
from cplane.web.handlers.jobs import JOBS, cancel_job, get_job, list_jobs, retry_job, retry_jobs, submit_job
from cplane.web.handlers.queues import list_queues
from cplane.web.handlers.sessions import SESSIONS, delete_session, get_session, import_session, list_sessions
from cplane.web.inputs import ListQuery, RetryBody, SessionQuery, SubmitBody, WaitQuery
from cplane.web.routing import Operation, ResponseSpec
from cplane.web.views import (
    Catalog,
    HostList,
    JobList,
    JobView,
    Liveness,
    QueueList,
    Readiness,
    Retried,
    SessionList,
    SessionView,
)

JOB = f"{JOBS}/{{id}}"
SESSION = f"{SESSIONS}/{{session}}"

NEXT_PAGE = {"Link": 'URL of the next page, rel="next"; missing on the last page'}
SUBMITTED = {
    "Location": "URL of the record",
    "Idempotency-Replayed": "`true` if the key led to the record of an earlier request",
}
ARTIFACT_HEADERS = {
    "ETag": "sha256 of the file",
    "Content-Length": "size of the file, bytes",
    "Content-Security-Policy": "`sandbox`: the file cannot run scripts; missing for a PDF",
}

BODY_PROBLEMS = (
    problems.NOT_JSON,
    problems.SLOW_BODY,
    problems.TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.INVALID_REQUEST,
)
"""Problems of every operation that reads a body."""

OPERATIONS = (
    Operation(
        method="POST",
        path=JOBS,
        id="submitJob",
        handler=submit_job,
        summary="Submit a job",
        description=(
            "Validates the arguments, records the job and schedules it. With `wait`, the response comes when the job "
            "is final or the time has run out. Send an `Idempotency-Key` to repeat a request safely: the job is "
            "recorded once."
        ),
        query=WaitQuery,
        headers={
            "Idempotency-Key": "1 to 255 printable ASCII characters; requests that repeat a key are recorded once"
        },
        body=SubmitBody,
        responses={
            200: ResponseSpec("The final record", JobView, headers=SUBMITTED),
            202: ResponseSpec("The record in its current state; it is not final yet", JobView, headers=SUBMITTED),
        },
        problems=(
            *BODY_PROBLEMS,
            problems.UNKNOWN_JOB,
            problems.INVALID_ARGUMENTS,
            problems.IDEMPOTENCY_KEY_REUSED,
            problems.IDEMPOTENCY_KEY_IN_USE,
            problems.DATABASE_UNAVAILABLE,
            problems.QUEUE_UNAVAILABLE,
        ),
    ),
    Operation(
        method="GET",
        path=JOBS,
        id="listJobs",
        handler=list_jobs,
        summary="List records, newest first",
        query=ListQuery,
        responses={200: ResponseSpec("A page of records", JobList, headers=NEXT_PAGE)},
        problems=(problems.INVALID_REQUEST, problems.DATABASE_UNAVAILABLE),
    ),
    Operation(
        method="POST",
        path=f"{JOBS}/retry",
        id="retryJobs",
        handler=retry_jobs,
        summary="Requeue many failed or cancelled jobs",
        description=(
            "Requeues the newest jobs first, up to `limit`. While `next` is not null there may be more: send the same "
            "body with `next` as its `cursor`."
        ),
        body=RetryBody,
        responses={200: ResponseSpec("The number of requeued jobs, and the cursor for the next call", Retried)},
        problems=(*BODY_PROBLEMS, problems.DATABASE_UNAVAILABLE),
    ),
    Operation(
        method="GET",
        path=JOB,
        id="getJob",
        handler=get_job,
        summary="Get a record",
        query=WaitQuery,
        responses={200: ResponseSpec("The record: final, or in its current state", JobView)},
        problems=(problems.UNKNOWN_ID, problems.INVALID_REQUEST, problems.DATABASE_UNAVAILABLE),
    ),
    Operation(
        method="POST",
        path=f"{JOB}/cancel",
        id="cancelJob",
        handler=cancel_job,
        summary="Cancel a job",
        responses={
            200: ResponseSpec("It was queued, and is cancelled", JobView),
            202: ResponseSpec("It is running; its worker is notified", JobView),
        },
        problems=(problems.UNKNOWN_ID, problems.INVALID_TRANSITION, problems.DATABASE_UNAVAILABLE),
    ),
    Operation(
        method="POST",
        path=f"{JOB}/retry",
        id="retryJob",
        handler=retry_job,
        summary="Requeue a failed or cancelled job",
        responses={
            200: ResponseSpec("The final record", JobView),
            202: ResponseSpec("It is queued again", JobView),
        },
        problems=(problems.UNKNOWN_ID, problems.INVALID_TRANSITION, problems.DATABASE_UNAVAILABLE),
    ),
    Operation(
        method="GET",
        path=f"{JOB}/artifacts/{{name}}",
        id="getArtifact",
        handler=get_artifact,
        summary="Download an artifact of a job",
        headers={"If-None-Match": "ETag of the version that the client has"},
        responses={
            200: ResponseSpec("The file, with its media type", media_type="*/*", headers=ARTIFACT_HEADERS),
            304: ResponseSpec("The client has the current version", media_type=""),
        },
        problems=(
            problems.UNKNOWN_ID,
            problems.UNKNOWN_ARTIFACT,
            problems.ARTIFACTS_UNAVAILABLE,
            problems.DATABASE_UNAVAILABLE,
        ),
    ),
    Operation(
        method="GET",
        path="/api/v1/catalog",
        id="getCatalog",
        handler=get_catalog,
        summary="List the jobs that can be submitted, with their JSON Schemas",
        responses={200: ResponseSpec("Every job, by name", Catalog)},
        tag="catalog",
    ),
    Operation(
        method="GET",
        path="/api/v1/queues",
        id="listQueues",
        handler=list_queues,
        summary="List the queues with their state",
        responses={200: ResponseSpec("Every queue with its counts and its latency", QueueList)},
        problems=(problems.DATABASE_UNAVAILABLE, problems.QUEUE_UNAVAILABLE),
        tag="queues",
    ),
    Operation(
        method="GET",
        path="/api/v1/hosts",
        id="listHosts",
        handler=list_hosts,
        summary="List the hosts that jobs wait for",
        responses={200: ResponseSpec("At most 100 hosts, those with the latest waiter first", HostList)},
        problems=(problems.QUEUE_UNAVAILABLE,),
        tag="queues",
    ),
    Operation(
        method="GET",
        path=SESSIONS,
        id="listSessions",
        handler=list_sessions,
        summary="List browser sessions, by name",
        query=SessionQuery,
        responses={200: ResponseSpec("A page of sessions", SessionList, headers=NEXT_PAGE)},
        problems=(problems.INVALID_REQUEST, problems.DATABASE_UNAVAILABLE),
        tag="sessions",
    ),
    Operation(
        method="GET",
        path=SESSION,
        id="getSession",
        handler=get_session,
        summary="Get the metadata of a browser session",
        responses={200: ResponseSpec("The session, without its storage state", SessionView)},
        problems=(problems.UNKNOWN_SESSION, problems.DATABASE_UNAVAILABLE),
        tag="sessions",
    ),
    Operation(
        method="PUT",
        path=SESSION,
        id="importSession",
        handler=import_session,
        summary="Create or replace a browser session",
        body=SessionState,
        responses={
            200: ResponseSpec("It is replaced", SessionView),
            201: ResponseSpec("It is created", SessionView, headers={"Location": "URL of the session"}),
        },
        problems=(
            *BODY_PROBLEMS,
            problems.INVALID_SESSION,
            problems.SESSION_IN_USE,
            problems.SECRET_KEY_MISSING,
            problems.DATABASE_UNAVAILABLE,
        ),
        tag="sessions",
    ),
    Operation(
        method="DELETE",
        path=SESSION,
        id="deleteSession",
        handler=delete_session,
        summary="Delete a browser session",
        responses={204: ResponseSpec("It is deleted", media_type="")},
        problems=(problems.UNKNOWN_SESSION, problems.SESSION_IN_USE, problems.DATABASE_UNAVAILABLE),
        tag="sessions",
    ),
    Operation(
        method="GET",
        path="/livez",
        id="livez",
        handler=livez,
        summary="Check that the process is alive",
        responses={200: ResponseSpec("It is alive", Liveness)},
        tag="health",
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="readyz",
        handler=readyz,
        summary="Check that Postgres and Redis respond",
        responses={
            200: ResponseSpec("The server is ready", Readiness),
            503: ResponseSpec("It is not ready; `checks` has the reason", Readiness),
        },
        tag="health",
    ),
)
