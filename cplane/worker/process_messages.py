"""What a worker and its processes tell each other: one msgpack object a frame, each with its length in front. No pickle."""

import socket
from typing import Any
from uuid import UUID

import msgspec

LENGTH_BYTES = 4

MAX_REPLY_BYTES = 128 * 1024 * 1024
"""The longest frame that a worker reads from a process."""


class RunJob(msgspec.Struct, frozen=True, tag_field="kind", tag="job", kw_only=True):
    """Run a job."""

    job: str
    module: str
    file: str
    """Where its function is defined, in case that the process has not imported the module."""
    id: UUID
    key: str
    attempt: int
    failures: int
    """Retries that were spent before: the process decides whether an error is retried, for it has the error."""
    args_json: bytes
    memory_mb: int | None
    max_result_bytes: int


class RunFunction(msgspec.Struct, frozen=True, tag_field="kind", tag="function", kw_only=True):
    """Call a function of cplane that is a part of another job."""

    module: str
    name: str
    args: tuple[Any, ...]
    memory_mb: int | None


class Began(msgspec.Struct, frozen=True, tag_field="kind", tag="began"):
    """The process has read the request; the deadline starts."""


class ProgressLine(msgspec.Struct, frozen=True, tag_field="kind", tag="progress"):
    """The job reports progress."""

    done: float
    total: float | None
    note: str


class LogLine(msgspec.Struct, frozen=True, tag_field="kind", tag="log"):
    """The job writes a log line; the values of its fields are JSON."""

    level: str
    event: str
    fields: dict[str, Any]


class Returned(msgspec.Struct, frozen=True, tag_field="kind", tag="returned"):
    """The call returned: a job its result as JSON, a function a value that msgpack can hold."""

    value: Any
    last: bool
    """Whether the process should be replaced."""


class Raised(msgspec.Struct, frozen=True, tag_field="kind", tag="raised", kw_only=True):
    """The call raised an error."""

    type: str
    message: str
    traceback: str
    retry_in_s: float | None = None
    """Seconds until the job runs again; None: never."""
    is_infrastructure: bool = False
    """Whether it is an `InfrastructureError`: no retry is used."""
    retry_after_s: float | None = None
    """Of a TooManyRequests."""
    last: bool


Request = RunJob | RunFunction
Reply = Returned | Raised
Report = Began | ProgressLine | LogLine

DecodeError = msgspec.MsgspecError
"""A frame that is not a message."""

requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
replies: msgspec.msgpack.Decoder[Reply | Report] = msgspec.msgpack.Decoder(Reply | Report)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Request | Reply | Report) -> bytes:
    """Return a message as a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES) + body


def receive(connection: socket.socket) -> bytes | None:
    """Read the next frame from a blocking socket, without its length; None at its end."""
    length = _receive(connection, LENGTH_BYTES)
    return None if length is None else _receive(connection, int.from_bytes(length))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, received = memoryview(data), 0
    while received < size:
        count = connection.recv_into(view[received:])
        if count == 0:
            return None
        received += count
    return bytes(data)
