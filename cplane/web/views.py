"""What the API shows: records, attempts, files, jobs, readiness, as pydantic models."""

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
from cplane.sessions.store import SessionInfo


class ErrorView(BaseModel):
    """What an attempt raised. It is the job's own error; errors of the API are problem+json."""

    type: str
    message: str


class ErrorDetailView(ErrorView):
    """What an attempt raised, with its traceback."""

    traceback: str


class ProgressView(BaseModel):
    """How far the attempt is."""

    done: float
    total: float | None
    note: str | None


class AttemptView(BaseModel):
    """One run of the job by one worker."""

    attempt: int
    worker: str
    cause: Cause = Field(description="why this attempt was made")
    state: AttemptState
    started_at: datetime
    finished_at: datetime | None
    error: ErrorDetailView | None


class ArtifactView(Artifact):
    """A file the job left."""

    url: str = Field(description="where to fetch it")


class _Record(BaseModel):
    id: UUID
    job: str = Field(description="the job's name")
    queue: str
    priority: Priority
    state: State
    progress: ProgressView | None
    attempt: int = Field(description="how often it was started; 0: not yet")
    failures: int = Field(description="attempts that failed by the job's own fault")
    cancel_requested: bool
    key: str | None = Field(description="the idempotency key")
    worker: str | None = Field(description="who runs it, or ran it last")
    created_at: datetime
    run_at: datetime = Field(description="when it is due")
    started_at: datetime | None
    finished_at: datetime | None
    url: str = Field(description="where the whole record is")
    recorded: bool = Field(
        default=True,
        description="false: a transient job, known only until its result is forgotten; it has no attempts and no files",
    )


class JobSummary(_Record):
    """A record in a list: without arguments, result, traceback, attempts and files."""

    error: ErrorView | None = Field(description="what the last attempt raised")


class JobView(_Record):
    """One record, whole."""

    args: SkipValidation[dict[str, JsonValue]]
    result: SkipValidation[JsonValue] = Field(description="what the job returned, once it has succeeded")
    error: ErrorDetailView | None = Field(description="what the last attempt raised")
    attempts: list[AttemptView]
    artifacts: list[ArtifactView]


class JobList(BaseModel):
    """A page of records, newest first."""

    jobs: list[JobSummary]
    next: str | None = Field(description="the cursor of the next page; null: this is the last one")


class CatalogEntry(BaseModel):
    """One job that can be submitted."""

    name: str
    description: str
    queue: str
    priority: Priority = Field(description="the lane of the queue it waits in, unless the submission says another")
    timeout: float = Field(description="seconds an attempt may take")
    retries: int = Field(description="how often it is run again after failing by its own fault")
    args: dict[str, Any] = Field(description="JSON Schema of the arguments")
    result: dict[str, Any] = Field(description="JSON Schema of the result")


class Catalog(BaseModel):
    """Every job this server knows, by name."""

    jobs: list[CatalogEntry]


class Retried(BaseModel):
    """What became of a call that runs many jobs again."""

    retried: int = Field(description="how many jobs are queued again")
    next: str | None = Field(description="the cursor to go on from; null: there are no more")


class QueueView(BaseModel):
    """The state of one queue."""

    name: str
    ready: int = Field(description="jobs that could start now")
    scheduled: int = Field(description="jobs that are due later")
    running: int = Field(description="jobs that a worker has leased")
    latency_s: float = Field(description="seconds for which the longest ready job has waited")


class QueueList(BaseModel):
    """The state of all queues."""

    queues: list[QueueView]
    dead_letters: int = Field(
        description="ids that left a queue because nobody can run them; `cplane dead-letters` lists them"
    )


class HostView(BaseModel):
    """How one host stands that jobs wait for."""

    host: str = Field(description="its name, with the port if it is not the scheme's own; a browser session is @NAME")
    running: int = Field(description="jobs that run there now")
    concurrency: int | None = Field(description="how many may, over all workers; null: any number")
    rate: float | None = Field(description="how many may start each second, over all workers; null: any number")
    waiting: int = Field(description="jobs that wait for their turn; they hold no page and no room")
    next_start: float = Field(description="seconds until rate and cooldown allow the next start")
    cooldown: float = Field(description="seconds for which the host is left alone because it has had enough")


class HostList(BaseModel):
    """The hosts that are limited now."""

    hosts: list[HostView]


class SessionView(BaseModel):
    """What may be known of a browser session; nothing of what it holds."""

    name: str
    size: int = Field(description="bytes of its JSON")
    version: int = Field(description="how often it was saved; 0: it is empty")
    key_id: str | None = Field(description="the key it is encrypted with, by a part of its hash")
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None = Field(description="when a job asked for it last")
    held_by: UUID | None = Field(description="the running job that holds it")
    held_attempt: int | None


class SessionList(BaseModel):
    """A page of browser sessions, by name."""

    sessions: list[SessionView]
    next: str | None = Field(description="the cursor of the next page; null: this is the last one")


class Readiness(BaseModel):
    """Whether the server can do its work."""

    ready: bool
    checks: dict[str, str] = Field(description='of each thing it depends on "ok", or what is wrong')


class Liveness(BaseModel):
    """That the process answers."""

    alive: bool = True


def session_view(session: SessionInfo) -> SessionView:
    """One browser session."""
    return SessionView.model_validate(session, from_attributes=True)


def job_summary(record: JobRecord, url: str) -> JobSummary:
    """A record in a list."""
    error = None if record.error_type is None else ErrorView(type=record.error_type, message=record.error_message or "")
    return JobSummary(error=error, **_common(record, url))


def job_view(
    record: JobRecord | TransientJob, attempts: Sequence[AttemptRecord], artifacts: Sequence[ArtifactRecord], url: str
) -> JobView:
    """One record, whole."""
    return JobView(
        args=record.args,
        result=record.result,
        error=_error(record),
        attempts=[_attempt(attempt) for attempt in attempts],
        artifacts=[_artifact(artifact, url) for artifact in artifacts],
        **_common(record, url),
    )


def queued_json(accepted: Accepted, url: str) -> bytes:
    """A record that was made a moment ago, as `job_view` shows it: the JSON of its arguments is passed on as it was recorded."""
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


def _common(record: JobRecord | TransientJob, url: str) -> Mapping[str, Any]:
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
        "worker": record.worker,
        "created_at": record.created_at,
        "run_at": record.run_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "url": url,
        "recorded": isinstance(record, JobRecord),
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
