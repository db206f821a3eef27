"""Inputs of the API: bodies and query parameters, as pydantic models with their bounds."""

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)

from cplane.jobs.names import JOB_NAME, QUEUE_NAME, SESSION_NAME
from cplane.jobs.states import Priority, State

MAX_WAIT_S = 60.0
MAX_DELAY_S = 10 * 366 * 86400.0

MAX_RETRIED = 5000
"""Maximum number of jobs that one call requeues: its response must come in time."""


def encode_cursor(last: UUID) -> str:
    """Return the cursor of the page after a record."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(cursor: object) -> object:
    """Return the id of the record that a cursor names."""
    try:
        return UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("not a cursor; take `next` of the previous page") from None


Wait = Annotated[
    float,
    Field(
        default=0.0,
        ge=0,
        le=MAX_WAIT_S,
        allow_inf_nan=False,
        description="maximum number of seconds to wait for the job to become final",
    ),
]
Cursor = Annotated[UUID, BeforeValidator(decode_cursor), WithJsonSchema({"type": "string"})]
JobName = Annotated[str, Field(pattern=f"^{JOB_NAME.pattern}$")]
QueueName = Annotated[str, Field(pattern=f"^{QUEUE_NAME.pattern}$")]
SessionName = Annotated[str, Field(pattern=f"^{SESSION_NAME.pattern}$")]


class WaitQuery(BaseModel):
    """How long to wait for a job."""

    model_config = ConfigDict(extra="forbid")

    wait: Wait


class ListQuery(BaseModel):
    """Which records to list."""

    model_config = ConfigDict(extra="forbid")

    state: State | None = Field(default=None, description="only records in this state")
    job: JobName | None = Field(default=None, description="only records of this job")
    queue: QueueName | None = Field(default=None, description="only records in this queue")
    limit: int = Field(default=50, ge=1, le=200, description="maximum number of records in a page")
    cursor: Cursor | None = Field(default=None, description="start of the page: `next` of the previous page")


class SessionQuery(BaseModel):
    """Which sessions to list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=200, description="maximum number of sessions in a page")
    cursor: SessionName | None = Field(default=None, description="start of the page: `next` of the previous page")


class RetryBody(BaseModel):
    """Which jobs to requeue."""

    model_config = ConfigDict(extra="forbid", strict=True)

    state: Literal["failed", "cancelled"] = Field(default="failed", description="the state of the jobs")
    job: JobName | None = Field(default=None, description="only jobs of this name")
    queue: QueueName | None = Field(default=None, description="only jobs of this queue")
    limit: int = Field(default=1000, ge=1, le=MAX_RETRIED, description="maximum number of jobs to requeue in this call")
    cursor: Cursor | None = Field(default=None, description="where to continue: `next` of the previous call")


class SubmitBody(BaseModel):
    """A job to run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job: str = Field(min_length=1, max_length=200, description="name of the job, as in /api/v1/catalog")
    args: dict[str, JsonValue] = Field(default={}, description="arguments by name")
    queue: QueueName | None = Field(default=None, description="a queue other than the job's own")
    priority: Priority | None = Field(
        default=None, description="lane of the queue in which it waits, instead of the job's own priority"
    )
    delay: float | None = Field(
        default=None, ge=0, le=MAX_DELAY_S, allow_inf_nan=False, description="seconds until it may start"
    )
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=MAX_DELAY_S,
        allow_inf_nan=False,
        description="maximum duration of each attempt, seconds; at most the job's own timeout",
    )
    at: AwareDatetime | None = Field(
        default=None,
        ge=datetime(1970, 1, 1, tzinfo=UTC),
        lt=datetime(9000, 1, 1, tzinfo=UTC),
        description="when it may start: ISO 8601 with an offset; not together with `delay`",
    )

    @model_validator(mode="after")
    def _at_most_one_time(self) -> Self:
        if self.delay is not None and self.at is not None:
            raise ValueError("delay and at exclude each other")
        return self
