"""What stands in Redis for a job and for its kept result: arq's dicts as msgpack, never pickle. No code can come from them.

A plain arq client or worker reads and writes the same with `job_serializer=serialize, job_deserializer=deserialize`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import msgspec

from cplane.errors import JobCancelled, JobFailed

PICKLE = b"\x80"

RECORD_END = b"\xa6record\xc3"
"""How the envelope of a record ends: what the scripts know it by."""

ERROR = 1
"""msgpack extension type of an error: its name, message and traceback as text."""


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """arq's job dict: try, function, arguments, keyword arguments, enqueue time in ms; and what cplane adds to it."""

    t: int | None
    f: str
    a: Sequence[Any]
    k: dict[str, Any]
    et: int
    limit_keys: tuple[str, ...] = ()
    """The keys that the job is limited by (`per_host.limit_keys_of`)."""
    record: bool = False
    """The job has a record in Postgres, and its arguments are there."""
    failures: int = 0
    interruptions: int = 0
    """The budgets a transient job has spent so far."""
    queue: str | None = None
    priority: str | None = None
    """Where a transient job waits, if it is another place than its job's own."""


class KeptResult(msgspec.Struct, frozen=True):
    """arq's result dict: what an ended job leaves for `keep_result` seconds."""

    t: int
    f: str
    a: Sequence[Any]
    k: dict[str, Any]
    et: int
    s: bool
    r: Any
    st: int
    ft: int
    q: str
    id: str


def now_ms() -> int:
    """This machine's clock, for the times in envelopes, which nothing is decided by."""
    return int(time.time() * 1000)


def encode_envelope(
    function: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **more: Any
) -> bytes:
    """A job to run: `more` is what `Envelope` has beside arq's fields.

    Raises:
        TypeError: an argument that msgpack cannot carry.
    """
    return _encoder.encode(Envelope(None, function, args, cast("dict[str, Any]", kwargs or {}), now_ms(), **more))


def record_envelope(function: str, limit_keys: tuple[str, ...] = ()) -> bytes:
    """A job whose record has the rest. Envelopes of the same second are the same bytes: they are made, and read, once."""
    return _record_envelope(function, int(time.time()) * 1000, limit_keys)


@lru_cache(maxsize=1024)
def _record_envelope(function: str, enqueued_ms: int, limit_keys: tuple[str, ...]) -> bytes:
    return _encoder.encode(Envelope(None, function, (), {}, enqueued_ms, limit_keys=limit_keys, record=True))


def decode_envelope(payload: bytes) -> Envelope:
    """The job in a payload.

    Raises:
        ValueError: it is not msgpack, or not arq's job dict; one sentence that says which.
    """
    return _read_short(payload) if len(payload) <= SHORT else _read(payload)


SHORT = 128
"""Payloads up to so many bytes are remembered: a record's names its job and nothing else."""


def _read(payload: bytes) -> Envelope:
    try:
        return _envelopes.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if payload[:1] == PICKLE and len(payload) > 1:  # msgpack reads this byte as an empty dict
            raise ValueError("the payload is a pickle; an arq client needs cplane's serializer") from None
        raise ValueError(f"the payload is not arq's job dict as msgpack: {error}") from None


_read_short: Callable[[bytes], Envelope] = lru_cache(maxsize=4096)(_read)


def encode(data: Envelope | KeptResult) -> bytes:
    """As msgpack. Raises TypeError for a value that msgpack cannot carry."""
    return _encoder.encode(data)


def decode_result(payload: bytes) -> KeptResult:
    """A kept result. Raises ValueError if it is none."""
    try:
        return _results.decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the payload is not arq's result dict as msgpack: {error}") from None


def serialize(data: dict[str, Any]) -> bytes:
    """arq's `job_serializer`: a job or result dict as msgpack; pydantic models, dataclasses and errors included.

    Raises:
        TypeError: a value that msgpack cannot carry.
    """
    return _encoder.encode(data)


def deserialize(payload: bytes) -> dict[str, Any]:
    """arq's `job_deserializer`: the dict of `serialize`. An error comes back as `JobFailed`, with its text.

    Raises:
        ValueError: it is not msgpack, or no dict.
    """
    try:
        data = _dicts.decode(payload)
    except msgspec.DecodeError as error:
        raise ValueError(f"the payload is not msgpack: {error}") from None
    failure = data.get("r")
    if isinstance(failure, ErrorText):
        data["r"] = failure.exception(str(data.get("f")))
    return data


class ErrorText(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An error as text: what crosses Redis instead of an exception."""

    type: str
    message: str
    traceback: str = ""

    def packed(self) -> msgspec.msgpack.Ext:
        """Ready to be a result: told apart from a list of texts."""
        return msgspec.msgpack.Ext(ERROR, msgspec.msgpack.encode(self))

    def exception(self, job: str) -> Exception:
        """What a caller who waited is told."""
        if self.type == "CancelledError":
            return JobCancelled(f"job '{job}' was cancelled")
        return JobFailed(job, self.type, self.message, self.traceback)


def _encode_hook(value: object) -> object:
    if isinstance(value, BaseException):
        return ErrorText(type(value).__qualname__, str(value)).packed()
    if (dump := getattr(value, "model_dump", None)) is not None:
        return dump(mode="json")
    raise TypeError(f"a {type(value).__qualname__} cannot be put into the queue")


def _ext_hook(code: int, data: memoryview) -> object:
    if code == ERROR:
        return msgspec.msgpack.decode(data, type=ErrorText)
    return msgspec.msgpack.Ext(code, bytes(data))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_envelopes = msgspec.msgpack.Decoder(Envelope, ext_hook=_ext_hook)
_results = msgspec.msgpack.Decoder(KeptResult, ext_hook=_ext_hook)
_dicts = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_ext_hook)
