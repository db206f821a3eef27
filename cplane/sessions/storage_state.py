"""The content of a browser session: Playwright's storage_state, its validation and its encoding as bytes.

Unknown members are kept unchanged, because a later Playwright may add some. Error messages never contain values.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, JsonValue, TypeAdapter, ValidationError, model_validator

from cplane.errors import InvalidSession, Problem, SessionTooLarge

StorageState = dict[str, JsonValue]
"""As `await context.storage_state()` returns it and `browser.new_context(storage_state=…)` accepts it."""

MAX_BYTES = 5 * 1024 * 1024
"""Size of a session as JSON."""

MAX_PROBLEMS = 20
"""Problems that an error lists. A state can have a hundred thousand of them; the first ones are enough."""

MAX_EXPIRES_S = 253_402_300_800.0
"""The year 10,000, in seconds since 1970: an upper bound for the expiry of cookies."""

Text = InstanceOf[str]
"""Any text that a page can store, including a lone surrogate, which pydantic's `str` rejects."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class SessionCookie(_Model):
    """One cookie, with a domain and a path, or with a URL."""

    name: Text
    value: Text
    domain: str | None = None
    path: str | None = None
    url: str | None = None
    expires: float = Field(
        default=-1.0,
        ge=-1,
        lt=MAX_EXPIRES_S,
        allow_inf_nan=False,
        description="seconds since 1970; -1: a session cookie",
    )
    httpOnly: bool = False  # noqa: N815  the name in Playwright
    secure: bool = False
    sameSite: Literal["Strict", "Lax", "None"] = "Lax"  # noqa: N815
    partitionKey: str | None = None  # noqa: N815

    @model_validator(mode="after")
    def _has_domain_or_url(self) -> Self:
        if self.url is None and (not self.domain or not self.path):
            raise ValueError("a cookie needs a domain and a path, or a url")
        return self


class StoredItem(_Model):
    """One entry of localStorage."""

    name: Text
    value: Text


class IndexedDatabase(_Model):
    """One IndexedDB database. Its stores are in Playwright's format."""

    name: Text
    version: int
    stores: list[dict[str, object]]


class SessionOrigin(_Model):
    """The localStorage and IndexedDB of one origin."""

    origin: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://", description="for example https://example.com")]
    localStorage: list[StoredItem] = []  # noqa: N815
    indexedDB: list[IndexedDatabase] = []  # noqa: N815


class SessionState(_Model):
    """A browser session, as Playwright's `context.storage_state()` returns it."""

    cookies: list[SessionCookie] = []
    origins: list[SessionOrigin] = []

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.model_fields_set & {"cookies", "origins"}:
            raise ValueError("it has neither cookies nor origins")
        return self


_state = TypeAdapter(SessionState)


def empty() -> StorageState:
    """Return the state of a new session."""
    return {"cookies": [], "origins": []}


def encode(state: Mapping[str, Any]) -> bytes:
    """Validate a state and encode it.

    Args:
        state: what `context.storage_state()` returned.

    Returns:
        The state as JSON in UTF-8; lone surrogates are kept.

    Raises:
        InvalidSession: it is not a storage_state; `problems` has the path of each invalid part, up to 20.
        SessionTooLarge: it has more than 5 MiB.
    """
    _check(state)
    try:
        text = json.dumps(state, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):  # their text may contain a value
        raise InvalidSession("the session's state is not JSON") from None
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_BYTES:
        raise SessionTooLarge(
            f"the session's state has {len(encoded)} bytes, the limit is {MAX_BYTES}",
            hint="save it without IndexedDB, or clear what the pages keep in localStorage",
        )
    return encoded


def decode(encoded: bytes) -> StorageState:
    """Return the state that `encode` encoded."""
    return cast("StorageState", json.loads(encoded.decode("utf-8", "surrogatepass")))


def _check(state: Mapping[str, Any]) -> None:
    try:
        _state.validate_python(state)
    except ValidationError as error:
        raise _invalid(error) from None  # pydantic's text contains values


def _invalid(error: ValidationError) -> InvalidSession:
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [
        Problem(_pointer(item["loc"]), item["msg"].removeprefix("Value error, ")) for item in errors[:MAX_PROBLEMS]
    ]
    first, more = problems[0], "" if len(errors) == 1 else f", and {len(errors) - 1} more"
    where = first.path.lstrip("/") or "the state"
    return InvalidSession(
        f"not a storage_state of Playwright: {where}: {first.message}{more}",
        problems,
        hint="save one with `await context.storage_state(path=…)`",
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)
