"""Reads JSON bodies, which may be hostile: checks their type, size, depth, duplicate members and characters."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import NoReturn, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from starlette.requests import ClientDisconnect

from cplane.web.problems import (
    INVALID_REQUEST,
    MAX_FIELD_ERRORS,
    NOT_JSON,
    SLOW_BODY,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    FieldError,
    RequestProblem,
    json_pointer,
)
from cplane.web.request import BODY_TIMEOUT_S, ApiRequest

DEPTH_HINT = "nest at most 200 levels deep"
UNSTORABLE = "contains NUL or half a surrogate pair"

THREAD_THRESHOLD_BYTES = 64 * 1024
"""A larger body is parsed in a thread, so that it does not block the event loop."""

ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
"""NUL and surrogates can only come as escapes: UTF-8 has no surrogates, JSON no bare NUL."""

BodyT = TypeVar("BodyT", bound=BaseModel)


async def read_body(request: ApiRequest, model: type[BodyT], *, max_bytes: int | None = None) -> BodyT:
    """Read the body and validate it against `model`.

    Args:
        request: the request; its deadline is moved once the body is complete.
        model: pydantic model of the body.
        max_bytes: size limit, bytes; default: `CPLANE_MAX_BODY_BYTES`.

    Raises:
        RequestProblem: 400, 408, 413, 415, or 422 with pointers into the body.
        ClientDisconnect: the client disconnected before the body was complete.
    """
    _check_type(request.header("content-type") or "", request.header("content-encoding") or "identity")
    body = await _read(request, max_bytes or request.settings.max_body_bytes)
    if len(body) > THREAD_THRESHOLD_BYTES:
        return await asyncio.to_thread(parse, body, model)
    return parse(body, model)


@lru_cache(maxsize=64)
def _check_type(content_type: str, encoding: str) -> None:
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        given = f"'{media_type}'" if media_type else "missing"
        raise RequestProblem(
            UNSUPPORTED_MEDIA_TYPE, f"the Content-Type is {given}", hint="send Content-Type: application/json"
        )
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise RequestProblem(UNSUPPORTED_MEDIA_TYPE, f"the charset is '{charset[1]}'", hint="send UTF-8")
    if encoding.lower() != "identity":
        raise RequestProblem(UNSUPPORTED_MEDIA_TYPE, "the body is compressed", hint="send it uncompressed")


async def _read(request: ApiRequest, limit: int) -> bytes:
    declared = request.header("content-length") or ""
    if declared.isdecimal() and int(declared) > limit:
        _refuse(limit)
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > limit:
                _refuse(limit)
    except asyncio.CancelledError:
        if not request.deadline.expired:
            raise
        raise RequestProblem(
            SLOW_BODY, f"the body was not complete within {BODY_TIMEOUT_S:g} seconds", headers={"connection": "close"}
        ) from None
    request.move_deadline(0)
    return b"".join(chunks)


def _refuse(limit: int) -> NoReturn:
    hint = "keep large data in files or tables and pass a reference"
    raise RequestProblem(
        TOO_LARGE, f"the body is larger than {limit} bytes", hint=hint, headers={"connection": "close"}
    )


def parse(body: bytes, model: type[BodyT]) -> BodyT:
    """Parse and validate a body.

    Raises:
        RequestProblem: 400 or 422 with pointers into the body.
    """
    _check_text(body)
    try:
        parsed: BodyT = model.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    else:
        return parsed
    if details[0]["type"] == "json_invalid":  # `json` accepted it: too deep, or a number of thousands of digits
        raise RequestProblem(
            NOT_JSON, f"the body cannot be parsed: {details[0]['msg'].removeprefix('Invalid JSON: ')}", hint=DEPTH_HINT
        )
    field_errors = [
        FieldError(pointer=json_pointer(each["loc"]), detail=_detail(each["type"], each["msg"], model))
        for each in details[:MAX_FIELD_ERRORS]
    ]
    raise _invalid(field_errors, len(details))


def _check_text(body: bytes) -> None:
    """Refuse what pydantic accepts or cannot locate: non-JSON constants, duplicate members, NUL, lone surrogates."""
    if b"\\u" not in body or not ESCAPED.search(body):
        try:
            _load(body, _STRICT_DECODER)
        except _DuplicateMemberError:
            pass
        else:
            return
    duplicates: dict[int, list[str]] = {}
    kept_alive: list[object] = []

    def collect(members: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found = dict(members)
        if len(found) < len(members):
            kept_alive.append(found)  # an object that is itself overwritten must not pass its id() on to another
            duplicates[id(found)] = [name for name, count in Counter(name for name, _ in members).items() if count > 1]
        return found

    value = _load(body, json.JSONDecoder(object_pairs_hook=collect, parse_constant=_refuse_constant))
    found = (
        field_error
        for location, part in _parts(value)
        for field_error in _text_errors(location, part, duplicates.get(id(part), []))
    )
    field_errors = list(islice(found, MAX_FIELD_ERRORS))
    if field_errors or duplicates:
        field_errors = field_errors or [FieldError(pointer="", detail="a member is given more than once")]
        raise _invalid(field_errors, len(field_errors))


class _DuplicateMemberError(Exception):
    """An object in the body has two members of one name."""


def _refuse_duplicates(members: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(members)
    if len(found) < len(members):
        raise _DuplicateMemberError
    return found


def _load(body: bytes, decoder: json.JSONDecoder) -> JsonValue:
    try:
        text = body.decode()
        value, end = decoder.raw_decode(text) if text.startswith("{") else (None, -1)
        return value if end == len(text) else decoder.decode(text)  # white space around it, or more than JSON
    except RecursionError:
        raise RequestProblem(NOT_JSON, "the body is nested too deeply", hint=DEPTH_HINT) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestProblem(NOT_JSON, f"the body is not JSON: {error}") from None
    except ValueError:
        raise RequestProblem(NOT_JSON, "a number in the body has too many digits") from None


Location = tuple["Location", int | str] | None
"""Location of a part: its parent's location and its own name. Pointers are built only for the parts that are wrong."""


def _parts(value: JsonValue) -> Iterator[tuple[Location, JsonValue]]:
    left: list[tuple[Location, JsonValue]] = [(None, value)]
    while left:
        location, part = left.pop()
        yield location, part
        if isinstance(part, dict):
            left.extend(((location, name), inner) for name, inner in part.items())
        elif isinstance(part, list):
            left.extend(((location, index), inner) for index, inner in enumerate(part))


def _text_errors(location: Location, part: JsonValue, duplicates: list[str]) -> Iterator[FieldError]:
    for name in duplicates:
        yield FieldError(pointer=_pointer((location, name)), detail="given more than once")
    if isinstance(part, str) and _is_unstorable(part):
        yield FieldError(pointer=_pointer(location), detail=UNSTORABLE)
    if isinstance(part, dict) and any(_is_unstorable(name) for name in part):
        yield FieldError(pointer=_pointer(location), detail=f"the name of a member {UNSTORABLE}")


def _pointer(location: Location) -> str:
    names: list[int | str] = []
    while location is not None:
        location, name = location
        names.append(name)
    return json_pointer(names[::-1])


def _is_unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_constant(name: str) -> NoReturn:
    raise RequestProblem(NOT_JSON, f"the body is not JSON: {name} is not a JSON value", hint="send null, or a string")


_STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
"""Enough for most bodies. Only a body that it refuses is decoded again, to locate the errors."""


def _detail(error_type: str, message: str, model: type[BaseModel]) -> str:
    if error_type == "extra_forbidden":
        return f"there is no such member; known: {', '.join(model.model_fields)}"
    return message.removeprefix("Value error, ")


def _invalid(field_errors: list[FieldError], count: int) -> RequestProblem:
    first, more = field_errors[0], "" if count <= 1 else f", and {count - 1} more"
    location = (first.pointer or "").lstrip("/") or "the body"
    return RequestProblem(INVALID_REQUEST, f"{location}: {first.detail}{more}", errors=field_errors)
