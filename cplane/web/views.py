"""What the API shows: records, attempts, files, jobs, readiness, as pydantic models."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field, JsonValue, SkipValidation

from cplane.context import Artifact
from cplane.records import ArtifactRecord, AttemptRecord, JobRecord
from cplane.states import AttemptState, Cause, State


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
    timeout: float = Field(description="seconds an attempt may take")
    retries: int = Field(description="how often it is run again after failing by its own fault")
    args: dict[str, Any] = Field(description="JSON Schema of the arguments")
    result: dict[str, Any] = Field(description="JSON Schema of the result")


class Catalog(BaseModel):
    """Every job this server knows, by name."""

    jobs: list[CatalogEntry]


class Readiness(BaseModel):
    """Whether the server can do its work."""

    ready: bool
    checks: dict[str, str] = Field(description='of each thing it depends on "ok", or what is wrong')


class Liveness(BaseModel):
    """That the process answers."""

    alive: bool = True


def job_summary(record: JobRecord, url: str) -> JobSummary:
    """A record in a list."""
    error = None if record.error_type is None else ErrorView(type=record.error_type, message=record.error_message or "")
    return JobSummary(error=error, **_common(record, url))


def job_view(
    record: JobRecord, attempts: Sequence[AttemptRecord], artifacts: Sequence[ArtifactRecord], url: str
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


def _common(record: JobRecord, url: str) -> Mapping[str, Any]:
    progress = None
    if record.progress_done is not None:
        progress = ProgressView(done=record.progress_done, total=record.progress_total, note=record.progress_note)
    return {
        "id": record.id,
        "job": record.job,
        "queue": record.queue,
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
    }


def _error(failed: JobRecord | AttemptRecord) -> ErrorDetailView | None:
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
