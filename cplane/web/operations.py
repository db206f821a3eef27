"""The operations of the API: the routes and the OpenAPI document are both made from this list."""

from cplane.sessions.storage_state import SessionState
from cplane.web import problems
from cplane.web.handlers.catalog import catalog
from cplane.web.handlers.health import livez, readyz
from cplane.web.handlers.hosts import list_hosts
from cplane.web.handlers.jobs import JOBS, artifact, cancel, list_jobs, retry, retry_many, show, submit
from cplane.web.handlers.queues import list_queues
from cplane.web.handlers.sessions import SESSIONS, delete_session, import_session, list_sessions, show_session
from cplane.web.inputs import ListQuery, RetryBody, SessionQuery, SubmitBody, WaitQuery
from cplane.web.routing import Answer, Operation
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

ACCEPTED = Answer("Not final yet: the record as it stands", JobView)
FINAL = Answer("The final record", JobView)
LOCATION = {
    "Location": "where the record is",
    "Idempotency-Replayed": "`true`: the key led to the record of an earlier request",
}
SESSION = f"{SESSIONS}/{{session}}"
FILE_HEADERS = {"ETag": "the file's sha256", "Content-Length": "bytes", "Content-Security-Policy": "it runs nothing"}

OPERATIONS = (
    Operation(
        method="POST",
        path=JOBS,
        id="submitJob",
        handler=submit,
        summary="Submit a job",
        query=WaitQuery,
        headers={
            "Idempotency-Key": "1 to 255 printable ASCII characters: the same key with the same request answers the same record"
        },
        body=SubmitBody,
        answers={
            200: Answer(FINAL.about, JobView, headers=LOCATION),
            202: Answer(ACCEPTED.about, JobView, headers=LOCATION),
        },
        problems=(
            *(problems.NOT_JSON, problems.SLOW_BODY, problems.TOO_LARGE, problems.MEDIA, problems.INVALID_REQUEST),
            *(
                problems.UNKNOWN_JOB,
                problems.INVALID_ARGUMENTS,
                problems.KEY_REUSED,
                problems.KEY_IN_USE,
                problems.DATABASE,
                problems.QUEUE,
            ),
        ),
    ),
    Operation(
        method="GET",
        path=JOBS,
        id="listJobs",
        handler=list_jobs,
        summary="List records, newest first",
        query=ListQuery,
        answers={200: Answer("A page of records", JobList, headers={"Link": 'the next page, rel="next"'})},
        problems=(problems.INVALID_REQUEST, problems.DATABASE),
    ),
    Operation(
        method="POST",
        path=f"{JOBS}/retry",
        id="retryJobs",
        handler=retry_many,
        summary="Run many failed or cancelled jobs again",
        body=RetryBody,
        answers={200: Answer("How many are queued again; `next` is the cursor to go on from", Retried)},
        problems=(
            *(problems.NOT_JSON, problems.SLOW_BODY, problems.TOO_LARGE, problems.MEDIA, problems.INVALID_REQUEST),
            problems.DATABASE,
        ),
    ),
    Operation(
        method="GET",
        path=f"{JOBS}/{{id}}",
        id="getJob",
        handler=show,
        summary="Show a record",
        query=WaitQuery,
        answers={200: Answer("The record: final, or as it stands", JobView)},
        problems=(problems.UNKNOWN_ID, problems.INVALID_REQUEST, problems.DATABASE),
    ),
    Operation(
        method="POST",
        path=f"{JOBS}/{{id}}/cancel",
        id="cancelJob",
        handler=cancel,
        summary="Cancel a job",
        answers={
            200: Answer("It was queued and is cancelled", JobView),
            202: Answer("It is running; its worker is told", JobView),
        },
        problems=(problems.UNKNOWN_ID, problems.INVALID_TRANSITION, problems.DATABASE),
    ),
    Operation(
        method="POST",
        path=f"{JOBS}/{{id}}/retry",
        id="retryJob",
        handler=retry,
        summary="Run a failed or cancelled job again",
        answers={200: FINAL, 202: Answer("It is queued again", JobView)},
        problems=(problems.UNKNOWN_ID, problems.INVALID_TRANSITION, problems.DATABASE),
    ),
    Operation(
        method="GET",
        path=f"{JOBS}/{{id}}/artifacts/{{name}}",
        id="getArtifact",
        handler=artifact,
        summary="Fetch a file the job left",
        headers={"If-None-Match": "the ETag of the version at hand"},
        answers={
            200: Answer("The file, of the type the record names", media_type="*/*", headers=FILE_HEADERS),
            304: Answer("The version at hand is the latest", media_type=""),
        },
        problems=(problems.UNKNOWN_ID, problems.UNKNOWN_ARTIFACT, problems.ARTIFACTS, problems.DATABASE),
    ),
    Operation(
        method="GET",
        path="/api/v1/catalog",
        id="getCatalog",
        handler=catalog,
        summary="List the jobs that can be submitted, with their schemas",
        answers={200: Answer("Every job by name", Catalog)},
        tag="catalog",
    ),
    Operation(
        method="GET",
        path="/api/v1/queues",
        id="listQueues",
        handler=list_queues,
        summary="How the queues stand",
        answers={200: Answer("Every queue with its numbers", QueueList)},
        problems=(problems.DATABASE, problems.QUEUE),
        tag="queues",
    ),
    Operation(
        method="GET",
        path="/api/v1/hosts",
        id="listHosts",
        handler=list_hosts,
        summary="The hosts that jobs wait for",
        answers={200: Answer("At most 100 hosts, those that somebody waited for last first", HostList)},
        problems=(problems.QUEUE,),
        tag="queues",
    ),
    Operation(
        method="GET",
        path=SESSIONS,
        id="listSessions",
        handler=list_sessions,
        summary="List browser sessions, by name",
        query=SessionQuery,
        answers={200: Answer("A page of sessions", SessionList, headers={"Link": 'the next page, rel="next"'})},
        problems=(problems.INVALID_REQUEST, problems.DATABASE),
        tag="sessions",
    ),
    Operation(
        method="GET",
        path=SESSION,
        id="getSession",
        handler=show_session,
        summary="Show a browser session, without what it holds",
        answers={200: Answer("The session", SessionView)},
        problems=(problems.UNKNOWN_SESSION, problems.DATABASE),
        tag="sessions",
    ),
    Operation(
        method="PUT",
        path=SESSION,
        id="importSession",
        handler=import_session,
        summary="Import a browser session, in the place of what was there",
        body=SessionState,
        answers={
            200: Answer("It is replaced", SessionView),
            201: Answer("It is new", SessionView, headers={"Location": "where the session is"}),
        },
        problems=(
            *(problems.NOT_JSON, problems.SLOW_BODY, problems.TOO_LARGE, problems.MEDIA, problems.INVALID_REQUEST),
            *(problems.INVALID_SESSION, problems.SESSION_IN_USE, problems.SECRET_KEY, problems.DATABASE),
        ),
        tag="sessions",
    ),
    Operation(
        method="DELETE",
        path=SESSION,
        id="deleteSession",
        handler=delete_session,
        summary="Forget a browser session",
        answers={204: Answer("It is forgotten", media_type="")},
        problems=(problems.UNKNOWN_SESSION, problems.SESSION_IN_USE, problems.DATABASE),
        tag="sessions",
    ),
    Operation(
        method="GET",
        path="/livez",
        id="livez",
        handler=livez,
        summary="Is the process alive?",
        answers={200: Answer("It is", Liveness)},
        tag="health",
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="readyz",
        handler=readyz,
        summary="Can it do its work?",
        answers={200: Answer("It can", Readiness), 503: Answer("It cannot; `checks` says why", Readiness)},
        tag="health",
    ),
)
