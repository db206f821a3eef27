"""Reading a JSON body that may be hostile: its type, its size while it comes, its depth, its duplicate members, its characters."""

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
    MAX_FAULTS,
    MEDIA,
    NOT_JSON,
    SLOW_BODY,
    TOO_LARGE,
    FieldError,
    RequestProblem,
    pointer,
)
from cplane.web.request import BODY_S, ApiRequest

DEPTH_HINT = "at most 200 levels"
UNSTORABLE = "contains NUL or half a surrogate pair"

THREAD_BYTES = 64 * 1024
"""A larger body is parsed in a thread: the loop goes on meanwhile."""

ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
"""NUL and surrogates can only come as escapes: UTF-8 has no surrogates, JSON no bare NUL."""

BodyT = TypeVar("BodyT", bound=BaseModel)


async def read_body(request: ApiRequest, model: type[BodyT], *, max_bytes: int | None = None) -> BodyT:
    """The body, checked against `model`; `max_bytes` where the setting's limit is not the one.

    Raises:
        RequestProblem: 400, 408, 413, 415 or 422 with pointers into the body.
    """
    _check_type(request.header("content-type") or "", request.header("content-encoding") or "identity")
    body = await _read(request, max_bytes or request.settings.max_body_bytes)
    if len(body) > THREAD_BYTES:
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
        raise RequestProblem(MEDIA, f"the Content-Type is {given}", hint="send Content-Type: application/json")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise RequestProblem(MEDIA, f"the charset is '{charset[1]}'", hint="send UTF-8")
    if encoding.lower() != "identity":
        raise RequestProblem(MEDIA, "the body is compressed", hint="send it as it is")


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
            SLOW_BODY, f"the body did not come within {BODY_S:g} seconds", headers={"connection": "close"}
        ) from None
    request.allow(0)
    return b"".join(chunks)


def _refuse(limit: int) -> NoReturn:
    hint = "keep large data in files or tables and pass a reference"
    raise RequestProblem(
        TOO_LARGE, f"the body is larger than {limit} bytes", hint=hint, headers={"connection": "close"}
    )


def parse(body: bytes, model: type[BodyT]) -> BodyT:
    """The checked body from its bytes."""
    _check_text(body)
    try:
        checked: BodyT = model.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    else:
        return checked
    if faults[0]["type"] == "json_invalid":  # json took it; what is left is depth, and numbers of thousands of digits
        raise RequestProblem(
            NOT_JSON, f"the body cannot be read: {faults[0]['msg'].removeprefix('Invalid JSON: ')}", hint=DEPTH_HINT
        )
    told = faults[:MAX_FAULTS]
    raise _invalid(
        [
            FieldError(pointer=pointer(fault["loc"]), detail=_sentence(fault["type"], fault["msg"], model))
            for fault in told
        ],
        len(faults),
    )


def _check_text(body: bytes) -> None:
    """What pydantic lets pass or cannot locate: constants that are not JSON, members given twice, NUL, lone surrogates."""
    if b"\\u" not in body or not ESCAPED.search(body):
        try:
            _load(body, _strict)
        except _GivenTwiceError:
            pass
        else:
            return
    twice: dict[int, list[str]] = {}
    kept: list[object] = []

    def collect(members: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found = dict(members)
        if len(found) < len(members):
            kept.append(found)  # an object that is itself overwritten must not give its identity to another
            twice[id(found)] = [name for name, times in Counter(name for name, _ in members).items() if times > 1]
        return found

    value = _load(body, json.JSONDecoder(object_pairs_hook=collect, parse_constant=_no_constant))
    found = (fault for where, part in _parts(value) for fault in _text_faults(where, part, twice.get(id(part), [])))
    faults = list(islice(found, MAX_FAULTS))
    if faults or twice:
        raise _invalid(faults or [FieldError(pointer="", detail="a member is given more than once")], len(faults))


class _GivenTwiceError(Exception):
    """Somewhere in the body is an object with two members of one name."""


def _each_once(members: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(members)
    if len(found) < len(members):
        raise _GivenTwiceError
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


Place = tuple["Place", int | str] | None
"""Where a part is: its parent's place and its own name; pointers are built only for what is wrong."""


def _parts(value: JsonValue) -> Iterator[tuple[Place, JsonValue]]:
    left: list[tuple[Place, JsonValue]] = [(None, value)]
    while left:
        where, part = left.pop()
        yield where, part
        if isinstance(part, dict):
            left.extend(((where, name), inner) for name, inner in part.items())
        elif isinstance(part, list):
            left.extend(((where, number), inner) for number, inner in enumerate(part))


def _text_faults(where: Place, part: JsonValue, twice: list[str]) -> Iterator[FieldError]:
    for name in twice:
        yield FieldError(pointer=_pointer((where, name)), detail="given more than once")
    if isinstance(part, str) and _unstorable(part):
        yield FieldError(pointer=_pointer(where), detail=UNSTORABLE)
    if isinstance(part, dict) and any(_unstorable(name) for name in part):
        yield FieldError(pointer=_pointer(where), detail=f"the name of a member {UNSTORABLE}")


def _pointer(where: Place) -> str:
    names: list[int | str] = []
    while where is not None:
        where, name = where
        names.append(name)
    return pointer(names[::-1])


def _unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _no_constant(name: str) -> NoReturn:
    raise RequestProblem(NOT_JSON, f"the body is not JSON: there is no {name} in it", hint="send null, or a text")


_strict = json.JSONDecoder(object_pairs_hook=_each_once, parse_constant=_no_constant)
"""Most bodies need no more: what is wrong with the others is looked for afterwards."""


def _sentence(kind: str, message: str, model: type[BaseModel]) -> str:
    if kind == "extra_forbidden":
        return f"there is no such member; known: {', '.join(model.model_fields)}"
    return message.removeprefix("Value error, ")


def _invalid(faults: list[FieldError], count: int) -> RequestProblem:
    first, more = faults[0], "" if count <= 1 else f", and {count - 1} more"
    where = (first.pointer or "").lstrip("/") or "the body"
    return RequestProblem(INVALID_REQUEST, f"{where}: {first.detail}{more}", errors=faults)
