"""The payloads of jobs and kept results in Redis: arq's dicts as msgpack, never pickle, so they cannot contain code.

A plain arq client or worker reads and writes the same format with `job_serializer=serialize` and
`job_deserializer=deserialize`. docs/protocol.md lists the fields.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import msgspec

from cplane.errors import JobCancelled, JobFailed
from cplane.runtime.text import storable

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the expected message: also for keys that are not UTF-8, and deep nesting."""

PICKLE_START = b"\x80"
"""The first byte of a pickle."""

RECORD_SUFFIX = b"\xa6record\xc3"
"""The last bytes of a record's envelope (`record: true`), by which the scripts recognise it."""

ERROR_EXT = 1
"""The msgpack extension type of an error: its type, message and traceback as text (`ErrorText`)."""

MAX_MESSAGE_CHARS = 16_000
"""Characters of the message of an exception that arq's own code encodes."""

MAX_CACHED_BYTES = 128
"""Decoded payloads up to this size are cached: the payload of a record names its job and nothing else."""


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job in Redis: arq's job dict (`t` to `et`), and what cplane adds. Fields with their default are omitted."""

    t: int | None
    """arq's try count; None from cplane, which counts in `arq:retry:ID`."""
    f: str
    """Function: the name of the job."""
    a: Sequence[Any]
    """Positional arguments; empty for a record."""
    k: dict[str, Any]
    """Keyword arguments; empty for a record."""
    et: int
    """Enqueue time, ms since 1970 by the client's clock."""
    limit_keys: tuple[str, ...] = ()
    """The limit keys that the job needs (`per_host.limit_keys_of`)."""
    record: bool = False
    """The job has a record in Postgres, which holds its arguments."""
    failures: int = 0
    """Failures of a transient job so far, out of its retry budget."""
    interruptions: int = 0
    """Interruptions of a transient job so far, out of its budget."""
    crashes: int = 0
    """Crashes of workers that a transient job has caused so far, as far as that is known."""
    suspicions: int = 0
    """Crashes of workers that a transient job was aboard of so far, and that cost it nothing: it was not alone."""
    queue: str | None = None
    """The queue of a transient job, if it is not the default of its job."""
    priority: str | None = None
    """The priority of a transient job, if it is not the default of its job."""
    timeout: float | None = None
    """Seconds that an attempt of a transient job may take, if the submission set them; at most the timeout of its job."""


class KeptResult(msgspec.Struct, frozen=True):
    """The result of a transient job or arq function in Redis: arq's result dict, kept for `keep_result` seconds."""

    t: int
    """Number of the last try, from 1."""
    f: str
    """Function: the name of the job."""
    a: Sequence[Any]
    """Positional arguments."""
    k: dict[str, Any]
    """Keyword arguments."""
    et: int
    """Enqueue time, ms since 1970."""
    s: bool
    """Whether the job succeeded."""
    r: Any
    """Its return value, or the error as extension type 1."""
    st: int
    """Start of the last try, ms since 1970."""
    ft: int
    """End of the last try, ms since 1970."""
    q: str
    """The sorted set the job was in."""
    id: str
    """The job's id."""


def now_ms() -> int:
    """Return this machine's time in ms since 1970, for the times in envelopes; no decision depends on them."""
    return int(time.time() * 1000)


def encode_envelope(
    function: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **extra: Any
) -> bytes:
    """Return the payload of a job to run.

    Args:
        function: name of the job.
        args: positional arguments.
        kwargs: keyword arguments.
        extra: the fields that `Envelope` has in addition to arq's.

    Raises:
        TypeError: msgpack cannot encode an argument.
    """
    return _encoder.encode(Envelope(None, function, args, cast("dict[str, Any]", kwargs or {}), now_ms(), **extra))


def next_envelope(last: Envelope, **changes: int) -> bytes:
    """Return the payload of a job that runs again.

    Args:
        last: the envelope of the attempt that has ended.
        changes: the fields in which the next one differs.
    """
    return _encoder.encode(msgspec.structs.replace(last, t=None, et=now_ms(), **changes))


def record_envelope(function: str, limit_keys: tuple[str, ...] = ()) -> bytes:
    """Return the payload of a job with a record, which holds the arguments.

    Envelopes of one job within the same second are equal bytes: they are encoded and decoded once.
    """
    return _record_envelope(function, int(time.time()) * 1000, limit_keys)


@lru_cache(maxsize=1024)
def _record_envelope(function: str, enqueued_ms: int, limit_keys: tuple[str, ...]) -> bytes:
    return _encoder.encode(Envelope(None, function, (), {}, enqueued_ms, limit_keys=limit_keys, record=True))


def decode_envelope(payload: bytes) -> Envelope:
    """Return the job in a payload.

    Raises:
        ValueError: it is not msgpack, or not arq's job dict; the message is one sentence that says which.
    """
    return _read_cached(payload) if len(payload) <= MAX_CACHED_BYTES else _read(payload)


def _read(payload: bytes) -> Envelope:
    try:
        return _envelopes.decode(payload)
    except UNREADABLE as error:
        if payload[:1] == PICKLE_START and len(payload) > 1:  # msgpack reads this byte as an empty dict
            raise ValueError("the payload is a pickle; an arq client needs cplane's serializer") from None
        raise ValueError(f"the payload is not arq's job dict as msgpack: {error}") from None


_read_cached: Callable[[bytes], Envelope] = lru_cache(maxsize=4096)(_read)


def encode(data: Envelope | KeptResult) -> bytes:
    """Return a payload or kept result as msgpack. Raises TypeError for a value that msgpack cannot encode."""
    return _encoder.encode(data)


def decode_result(payload: bytes) -> KeptResult:
    """Return the result in a payload. Raises ValueError if it is not arq's result dict."""
    try:
        return _results.decode(payload)
    except UNREADABLE as error:
        raise ValueError(f"the payload is not arq's result dict as msgpack: {error}") from None


def serialize(data: dict[str, Any]) -> bytes:
    """Return a job or result dict as msgpack: arq's `job_serializer`. Models, dataclasses and errors are supported.

    Raises:
        TypeError: msgpack cannot encode a value.
    """
    return _encoder.encode(data)


def deserialize(payload: bytes) -> dict[str, Any]:
    """Return the dict that `serialize` encoded: arq's `job_deserializer`. An error is returned as `JobFailed`.

    Raises:
        ValueError: it is not msgpack, or not a dict.
    """
    try:
        data = _dicts.decode(payload)
    except UNREADABLE as error:
        raise ValueError(f"the payload is not msgpack: {error}") from None
    failure = data.get("r")
    if isinstance(failure, ErrorText):
        data["r"] = failure.exception(str(data.get("f")))
    return data


class ErrorText(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An error as text, which is stored in Redis in place of the exception."""

    type: str
    """The name of the exception's class."""
    message: str
    traceback: str = ""

    def packed(self) -> msgspec.msgpack.Ext:
        """Return the error as a msgpack extension, which a list of texts cannot be mistaken for."""
        return msgspec.msgpack.Ext(ERROR_EXT, msgspec.msgpack.encode(self))

    def exception(self, job: str) -> Exception:
        """Return the exception that the job's waiters receive."""
        if self.type == "CancelledError":
            return JobCancelled(f"job '{job}' was cancelled")
        return JobFailed(job, self.type, self.message, self.traceback)


def _encode_hook(value: object) -> object:
    if isinstance(value, BaseException):
        return ErrorText(type(value).__qualname__, storable(str(value)[:MAX_MESSAGE_CHARS])).packed()
    if (dump := getattr(value, "model_dump", None)) is not None:
        return dump(mode="json")
    raise TypeError(f"a {type(value).__qualname__} cannot be encoded as msgpack")


def _ext_hook(code: int, data: memoryview) -> object:
    if code == ERROR_EXT:
        return msgspec.msgpack.decode(data, type=ErrorText)
    return msgspec.msgpack.Ext(code, bytes(data))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_envelopes = msgspec.msgpack.Decoder(Envelope, ext_hook=_ext_hook)
_results = msgspec.msgpack.Decoder(KeptResult, ext_hook=_ext_hook)
_dicts = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_ext_hook)
