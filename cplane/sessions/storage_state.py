"""What a browser session is made of: Playwright's storage_state, checked, and as bytes.

Members that are not known here are kept as they are: a later Playwright may have more. Values never get into a message.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, JsonValue, TypeAdapter, ValidationError, model_validator

from cplane.errors import InvalidSession, Problem, SessionTooLarge

StorageState = dict[str, JsonValue]
"""As `await context.storage_state()` answers it and `browser.new_context(storage_state=…)` takes it."""

MAX_BYTES = 5 * 1024 * 1024
"""A session, as JSON."""

MAX_PROBLEMS = 20
"""A state can be wrong in a hundred thousand places; the first ones will do."""

AFTER_ALL_S = 253_402_300_800.0
"""The year 10,000: no cookie lives longer."""

Text = InstanceOf[str]
"""Any text a page may keep: a half of a surrogate pair too, which pydantic's own `str` refuses."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class SessionCookie(_Part):
    """One cookie, of a domain and a path, or of a URL."""

    name: Text
    value: Text
    domain: str | None = None
    path: str | None = None
    url: str | None = None
    expires: float = Field(
        default=-1.0, ge=-1, lt=AFTER_ALL_S, allow_inf_nan=False, description="seconds since 1970; -1: with the session"
    )
    httpOnly: bool = False  # noqa: N815  Playwright's name
    secure: bool = False
    sameSite: Literal["Strict", "Lax", "None"] = "Lax"  # noqa: N815
    partitionKey: str | None = None  # noqa: N815

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.url is None and (not self.domain or not self.path):
            raise ValueError("a cookie has a domain and a path, or a url")
        return self


class StoredItem(_Part):
    """One entry of a localStorage."""

    name: Text
    value: Text


class IndexedDatabase(_Part):
    """One IndexedDB database; its stores are Playwright's own."""

    name: Text
    version: int
    stores: list[dict[str, object]]


class SessionOrigin(_Part):
    """What the pages of one origin keep."""

    origin: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://", description="such as https://example.com")]
    localStorage: list[StoredItem] = []  # noqa: N815
    indexedDB: list[IndexedDatabase] = []  # noqa: N815


class SessionState(_Part):
    """A browser session, as Playwright's `context.storage_state()` answers it."""

    cookies: list[SessionCookie] = []
    origins: list[SessionOrigin] = []

    @model_validator(mode="after")
    def _has_any(self) -> Self:
        if not self.model_fields_set & {"cookies", "origins"}:
            raise ValueError("there are neither cookies nor origins in it")
        return self


_state = TypeAdapter(SessionState)


def empty() -> StorageState:
    """The state of a session in which nothing was done yet."""
    return {"cookies": [], "origins": []}


def encode(state: Mapping[str, Any]) -> bytes:
    """The checked state as bytes.

    Raises:
        InvalidSession: it is no storage_state; `problems` has the path to each part that does not fit.
        SessionTooLarge: it has more than 5 MiB.
    """
    _check(state)
    try:
        text = json.dumps(state, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # their text may show a value
        raise InvalidSession("the session's state is not JSON") from None
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_BYTES:
        raise SessionTooLarge(
            f"the session's state has {len(encoded)} bytes, the limit is {MAX_BYTES}",
            hint="save it without IndexedDB, or clear what the pages keep in localStorage",
        )
    return encoded


def decode(encoded: bytes) -> StorageState:
    """The state from its bytes."""
    return cast("StorageState", json.loads(encoded.decode("utf-8", "surrogatepass")))


def _check(state: Mapping[str, Any]) -> None:
    try:
        _state.validate_python(state)
    except ValidationError as error:
        raise _invalid(error) from None  # pydantic's text shows values


def _invalid(error: ValidationError) -> InvalidSession:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [
        Problem(_pointer(fault["loc"]), fault["msg"].removeprefix("Value error, ")) for fault in faults[:MAX_PROBLEMS]
    ]
    first, more = problems[0], "" if len(faults) == 1 else f", and {len(faults) - 1} more"
    where = first.path.lstrip("/") or "the state"
    return InvalidSession(
        f"this is no storage_state of Playwright: {where}: {first.message}{more}",
        problems,
        hint="save one with `await context.storage_state(path=…)`",
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)
