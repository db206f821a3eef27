"""Payloads in Redis: arq's dicts as msgpack, which both sides read and write, and never code."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from cplane.errors import JobCancelled, JobFailed
from cplane.redis.envelope import (
    ErrorText,
    KeptResult,
    decode_envelope,
    decode_result,
    deserialize,
    encode,
    encode_envelope,
    now_ms,
    record_envelope,
    serialize,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Point(BaseModel):
    x: int
    when: datetime


@dataclass
class Size:
    width: int


def arqs_dict(**fields: Any) -> dict[str, Any]:
    """Return a job as arq passes it to its serializer."""
    return {"t": None, "f": "f", "a": (), "k": {}, "et": 5, **fields}


@given(st.text(max_size=30), st.lists(JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_call_is_decoded_as_it_was_encoded(function: str, args: list[object], kwargs: dict[str, object]) -> None:
    envelope = decode_envelope(encode_envelope(function, args, kwargs, failures=2, interruptions=3))
    assert (envelope.f, envelope.a, envelope.k) == (function, args, kwargs)
    assert (envelope.t, envelope.record, envelope.failures, envelope.interruptions) == (None, False, 2, 3)
    assert abs(envelope.et - now_ms()) < 60_000


@given(st.binary(max_size=300))
def test_any_bytes_decode_as_a_job_or_raise_one_sentence(payload: bytes) -> None:
    message = error_of(decode_envelope, payload)
    assert not message or message.startswith("the payload is")
    assert "\n" not in message


@given(st.binary(max_size=300))
@example(b"\x81\xa4\x00\x00\x00\x80")  # a key that is not UTF-8
@example(b"\x81\xa1r" + b"\x91" * 100_000)
def test_any_bytes_decode_as_a_result_or_raise_one_sentence(payload: bytes) -> None:
    for decode in (decode_result, deserialize):
        message = error_of(decode, payload)
        assert not message or message.startswith("the payload is not")


def error_of(decode: Callable[[bytes], object], payload: bytes) -> str:
    """Return the error message of a payload; empty if it can be decoded."""
    try:
        decode(payload)
    except ValueError as error:
        return str(error)
    return ""


def test_only_arqs_fields_are_written_for_a_plain_job() -> None:
    written = msgspec.msgpack.decode(encode_envelope("f", (1,), {"x": 2}))
    assert written == {"t": None, "f": "f", "a": [1], "k": {"x": 2}, "et": written["et"]}


def test_the_payload_of_a_record_contains_only_the_name_of_its_job() -> None:
    payload = record_envelope("headline")
    envelope = decode_envelope(payload)
    assert (envelope.f, envelope.a, envelope.k, envelope.record) == ("headline", [], {}, True)
    assert len(payload) < 80


def test_arqs_dict_and_our_envelope_are_the_same_format() -> None:
    payload = serialize(arqs_dict(a=(1, "x"), k={"y": [None, True]}, t=3))
    envelope = decode_envelope(payload)
    assert (envelope.t, envelope.f, envelope.a, envelope.k, envelope.et) == (3, "f", [1, "x"], {"y": [None, True]}, 5)
    assert deserialize(encode(envelope)) == {"t": 3, "f": "f", "a": [1, "x"], "k": {"y": [None, True]}, "et": 5}


def test_models_dataclasses_and_times_are_encoded_as_json_types() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    data = deserialize(serialize(arqs_dict(a=(Point(x=1, when=when), Size(2), UUID(int=3), {4}, b"\xff"))))
    assert data["a"][:4] == [{"x": 1, "when": "2026-01-02T03:04:05Z"}, {"width": 2}, str(UUID(int=3)), [4]]
    assert data["a"][4] == b"\xff"


@pytest.mark.parametrize("value", [object(), test_only_arqs_fields_are_written_for_a_plain_job, 2**70, type])
def test_a_value_that_msgpack_cannot_encode_is_rejected_by_the_encoder(value: object) -> None:
    with pytest.raises((TypeError, OverflowError)):
        serialize(arqs_dict(a=(value,)))


def test_an_error_is_encoded_as_text() -> None:
    data = deserialize(serialize({"f": "f", "r": ValueError("the reason")}))
    assert isinstance(data["r"], JobFailed)
    assert (data["r"].error_type, data["r"].error_message) == ("ValueError", "the reason")
    data = deserialize(serialize({"f": "f", "r": asyncio.CancelledError()}))
    assert isinstance(data["r"], JobCancelled)


def test_an_error_in_a_kept_result_is_distinct_from_a_list_of_texts() -> None:
    def kept(value: object, *, succeeded: bool) -> KeptResult:
        return KeptResult(1, "f", (1,), {"k": 2}, 3, succeeded, value, 4, 5, "arq:queue", "id")

    failed = decode_result(encode(kept(ErrorText("E", "m", "tb").packed(), succeeded=False)))
    assert failed.r == ErrorText("E", "m", "tb")
    listed = decode_result(encode(kept(["E", "m", "tb"], succeeded=True)))
    assert listed.r == ["E", "m", "tb"]
    assert (listed.t, listed.a, listed.k, listed.st, listed.ft, listed.id) == (1, [1], {"k": 2}, 4, 5, "id")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not arq's job dict"),
        (b"\x80\x04\x95pickle", "is a pickle"),
        (b"\x80", "not arq's job dict"),
        (msgspec.msgpack.encode([1]), "not arq's job dict"),
        (msgspec.msgpack.encode({"a": []}), "not arq's job dict"),
        (msgspec.msgpack.encode({**arqs_dict(), "record": "yes"}), "not arq's job dict"),
        (msgspec.msgpack.encode({**arqs_dict(), "failures": "many"}), "not arq's job dict"),
        (msgspec.msgpack.encode(arqs_dict())[:-1], "not arq's job dict"),
        (msgspec.msgpack.encode(arqs_dict()) + b"\x00", "not arq's job dict"),
        (b"\x91" * 100_000, "not arq's job dict"),
    ],
)
def test_a_payload_that_is_not_a_job_raises_an_error_that_names_the_reason(payload: bytes, message: str) -> None:
    for _ in range(2):  # short payloads are cached; errors are not
        with pytest.raises(ValueError, match=message):
            decode_envelope(payload)
