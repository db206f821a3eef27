"""Outputs of the API as pydantic models: records, attempts, artifacts, jobs, queues, sessions, health."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from pydantic import BaseModel, Field, JsonValue, SkipValidation

from cplane.jobs.context import Artifact
from cplane.jobs.states import AttemptState, Cause, Priority, State
from cplane.plane.submissions import Accepted
from cplane.plane.transient import TransientJob
from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
from cplane.postgres.rows import RecordSummary
from cplane.sessions.store import SessionInfo


class ErrorView(BaseModel):
    """The error of an attempt. It is the job's own error; errors of the API are problem+json."""

    type: str
    message: str


class ErrorDetailView(ErrorView):
    """The error of an attempt, with its traceback."""

    traceback: str


class ProgressView(BaseModel):
    """Progress of the attempt."""

    done: float
    total: float | None
    note: str | None


class AttemptView(BaseModel):
    """One run of the job by one worker."""

    attempt: int
    worker: str
    cause: Cause = Field(description="why this attempt was started")
    state: AttemptState
    started_at: datetime
    finished_at: datetime | None
    error: ErrorDetailView | None


class ArtifactView(Artifact):
    """A file that the job stored."""

    url: str = Field(description="URL of the file")


class _Record(BaseModel):
    id: UUID
    job: str = Field(description="name of the job")
    queue: str
    priority: Priority
    state: State
    progress: ProgressView | None
    attempt: int = Field(description="number of attempts started so far")
    failures: int = Field(description="number of attempts that failed by the job's own fault")
    cancel_requested: bool
    key: str | None = Field(description="idempotency key")
    timeout: float | None = Field(
        description="maximum duration of an attempt as submitted, seconds; null: the job's own, or not known any more"
    )
    worker: str | None = Field(description="the worker that runs it, or ran it last")
    created_at: datetime
    run_at: datetime = Field(description="when it may start")
    started_at: datetime | None
    finished_at: datetime | None
    url: str = Field(description="URL of the record")
    recorded: bool = Field(
        default=True,
        description="false for a transient job: known until its result expires, without attempts and artifacts",
    )


class JobSummary(_Record):
    """A record in a list: without arguments, result, traceback, attempts and artifacts."""

    error: ErrorView | None = Field(description="error of the last attempt")


class JobView(_Record):
    """A complete record."""

    args: SkipValidation[dict[str, JsonValue]]
    result: SkipValidation[JsonValue] = Field(description="return value of the job, once it has succeeded")
    error: ErrorDetailView | None = Field(description="error of the last attempt")
    attempts: list[AttemptView]
    artifacts: list[ArtifactView]


class JobList(BaseModel):
    """A page of records, newest first."""

    jobs: list[JobSummary]
    next: str | None = Field(description="cursor of the next page; null on the last page")


class CatalogEntry(BaseModel):
    """A job that can be submitted."""

    name: str
    description: str
    queue: str
    priority: Priority = Field(description="lane of the queue in which it waits, unless the submission sets another")
    timeout: float = Field(description="maximum duration of an attempt, seconds")
    retries: int = Field(description="maximum number of retries after failures by the job's own fault")
    args: dict[str, Any] = Field(description="JSON Schema of the arguments")
    result: dict[str, Any] = Field(description="JSON Schema of the result")


class Catalog(BaseModel):
    """Every job that this server knows, by name."""

    jobs: list[CatalogEntry]


class Retried(BaseModel):
    """Result of a bulk retry."""

    retried: int = Field(description="number of jobs that were requeued")
    next: str | None = Field(description="cursor for the next call; null when no more jobs match")


class QueueView(BaseModel):
    """The state of one queue."""

    name: str
    ready: int = Field(description="number of jobs that can start now")
    scheduled: int = Field(description="number of jobs whose start lies in the future")
    running: int = Field(description="number of jobs that are leased by a worker")
    latency_s: float = Field(description="how long the oldest ready job has waited, seconds")


class QueueList(BaseModel):
    """The state of all queues."""

    queues: list[QueueView]
    dead_letters: int = Field(
        description="number of dead letters: entries that no worker can run; `cplane dead-letters` lists them"
    )


class HostView(BaseModel):
    """The limiter's state of one host."""

    host: str = Field(
        description="host name, with the port if it is not the scheme's default; a browser session is @NAME"
    )
    running: int = Field(description="number of jobs that run on it now")
    concurrency: int | None = Field(description="maximum number of concurrent jobs over all workers; null: unlimited")
    rate: float | None = Field(description="maximum number of starts per second over all workers; null: unlimited")
    waiting: int = Field(description="number of jobs that wait for a slot; they hold no page and no slot of a worker")
    next_start: float = Field(description="seconds until rate and cooldown allow the next start")
    cooldown: float = Field(
        description="seconds for which no job of the host starts, because it returned 429 or 503 or a job asked for it"
    )


class HostList(BaseModel):
    """The hosts that are limited now."""

    hosts: list[HostView]


class SessionView(BaseModel):
    """Metadata of a browser session, never its storage state."""

    name: str
    size: int = Field(description="size of its JSON, bytes")
    version: int = Field(description="how often it was saved; 0 if it is empty")
    key_id: str | None = Field(description="the encryption key, identified by a part of its hash")
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None = Field(description="when a job last requested it")
    hosts: list[str] | None = Field(
        description="the hosts whose pages its jobs may open; null if it is empty, and not bound yet"
    )
    allowed_hosts: list[str] = Field(description="further hosts, allowed by name")
    allowed_options: list[str] = Field(description="options that are refused with a session, and allowed with this one")
    held_by: UUID | None = Field(description="the running job that holds it")
    held_attempt: int | None


class SessionList(BaseModel):
    """A page of browser sessions, by name."""

    sessions: list[SessionView]
    next: str | None = Field(description="cursor of the next page; null on the last page")


class Readiness(BaseModel):
    """Whether the server can serve requests."""

    ready: bool
    checks: dict[str, str] = Field(description='dependency → "ok", or what is wrong')


class Liveness(BaseModel):
    """Whether the process responds."""

    alive: bool = True


def session_view(session: SessionInfo) -> SessionView:
    """Return the view of a browser session."""
    return SessionView.model_validate(session, from_attributes=True)


def job_summary(record: RecordSummary, url: str) -> JobSummary:
    """Return the view of a record in a list."""
    error = None if record.error_type is None else ErrorView(type=record.error_type, message=record.error_message or "")
    return JobSummary(error=error, **_common(record, url))


def job_view(
    record: JobRecord | TransientJob, attempts: Sequence[AttemptRecord], artifacts: Sequence[ArtifactRecord], url: str
) -> JobView:
    """Return the view of a complete record.

    Args:
        record: the record, or a transient job.
        attempts: its attempts, oldest first.
        artifacts: its artifacts.
        url: URL of the record, from which those of the artifacts are formed.
    """
    return JobView(
        args=record.args,
        result=record.result,
        error=_error(record),
        attempts=[_attempt(attempt) for attempt in attempts],
        artifacts=[_artifact(artifact, url) for artifact in artifacts],
        **_common(record, url),
    )


def queued_json(accepted: Accepted, url: str) -> bytes:
    """Return a new record as JSON, in the shape of `job_view`. The JSON of the arguments is copied, not parsed."""
    submission, submitted = accepted.submission, accepted.submitted
    return _encode(
        {
            "id": submitted.id,
            "job": submission.job.name,
            "queue": submission.queue,
            "priority": submission.priority,
            "state": State.QUEUED,
            "progress": None,
            "attempt": 0,
            "failures": 0,
            "cancel_requested": False,
            "key": submission.key,
            "timeout": submission.timeout_s,
            "worker": None,
            "created_at": submitted.created_at,
            "run_at": submitted.run_at,
            "started_at": None,
            "finished_at": None,
            "url": url,
            "recorded": submission.job.options.record,
            "args": msgspec.Raw(submission.args_json),
            "result": None,
            "error": None,
            "attempts": (),
            "artifacts": (),
        }
    )


_encode = msgspec.json.Encoder().encode


def _common(record: JobRecord | RecordSummary | TransientJob, url: str) -> Mapping[str, Any]:
    progress = None
    if record.progress_done is not None:
        progress = ProgressView(done=record.progress_done, total=record.progress_total, note=record.progress_note)
    return {
        "id": record.id,
        "job": record.job,
        "queue": record.queue,
        "priority": record.priority,
        "state": record.state,
        "progress": progress,
        "attempt": record.attempt,
        "failures": record.failures,
        "cancel_requested": record.cancel_requested,
        "key": record.key,
        "timeout": record.timeout_s,
        "worker": record.worker,
        "created_at": record.created_at,
        "run_at": record.run_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "url": url,
        "recorded": not isinstance(record, TransientJob),
    }


def _error(failed: JobRecord | TransientJob | AttemptRecord) -> ErrorDetailView | None:
    if failed.error_type is None:
        return None
    return ErrorDetailView(
        type=failed.error_type, message=failed.error_message or "", traceback=failed.error_traceback or ""
    )


def _attempt(attempt: AttemptRecord) -> AttemptView:
    return AttemptView(
        attempt=attempt.attempt,
        worker=attempt.worker,
        cause=attempt.cause,
        state=attempt.state,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        error=_error(attempt),
    )


def _artifact(artifact: ArtifactRecord, url: str) -> ArtifactView:
    return ArtifactView(
        name=artifact.name,
        media_type=artifact.media_type,
        size=artifact.size,
        sha256=artifact.sha256,
        url=f"{url}/artifacts/{artifact.name}",
    )
