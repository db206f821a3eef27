"""How a job's page is set up: what it shares with other jobs, viewport, identity, locale, credentials."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cplane.errors import InvalidArguments, Problem

OURS = {"isolation", "session", "egress", "trace"}
"""Options that are not Playwright's."""


def _check_locale(locale: str) -> str:
    if not all(part.isalnum() and part.isascii() for part in locale.split("-")):
        raise ValueError("a locale is a language tag, for example de-DE")
    return locale


class Strict(BaseModel):
    """Frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Viewport(Strict):
    """The size of the page's window in CSS pixels."""

    width: int = Field(ge=1, le=16384)
    height: int = Field(ge=1, le=16384)


class Authenticate(Strict):
    """Credentials for HTTP authentication (Basic, Digest), sent when a server asks for them."""

    username: str
    password: str = Field(repr=False)
    origin: str | None = Field(default=None, description="who gets them, https://host:port; default: who asks")


class Proxy(Strict):
    """The proxy the page's requests go through."""

    server: str = Field(description="http://host:port or socks5://host:port")
    bypass: str | None = Field(default=None, description="comma-separated hosts that are reached directly")
    username: str | None = None
    password: str | None = Field(default=None, repr=False)


Isolation = Literal["fresh", "session", "shared"]
Trace = Literal["off", "on-failure", "on"]


class PageOptions(Strict):
    """How the context of a page is made. What is not given is Chromium's default; downloads are off."""

    isolation: Isolation | None = Field(
        default=None,
        description="fresh (default): a context of its own; session: one that begins with what a named session kept; "
        "shared: the context that other jobs of this name use, too",
    )
    session: str | None = Field(default=None, min_length=1, description="the name of the session")
    egress: Literal["public", "any"] | None = Field(
        default=None,
        description="any: reach every address, whatever CPLANE_EGRESS says; for jobs that take no address from outside",
    )
    trace: Trace | None = Field(
        default=None,
        description="Playwright's trace of what the job does: kept of runs that fail (on-failure, the default), of every run (on), of none (off)",
    )
    viewport: Viewport | None = Field(default=None, description="default: 1280 by 720")
    device_scale_factor: float | None = Field(default=None, gt=0, le=10)
    is_mobile: bool | None = None
    has_touch: bool | None = None
    user_agent: str | None = Field(default=None, min_length=1)
    locale: Annotated[str, AfterValidator(_check_locale)] | None = Field(default=None, description="for example de-DE")
    timezone: str | None = Field(default=None, min_length=1, description="for example Europe/Berlin")
    color_scheme: Literal["light", "dark", "no-preference"] | None = None
    reduced_motion: Literal["reduce", "no-preference"] | None = None
    extra_http_headers: dict[str, str] | None = Field(default=None, description="sent with every request of the page")
    authenticate: Authenticate | None = None
    java_script_enabled: bool | None = None
    bypass_csp: bool | None = None
    proxy: Proxy | None = None
    ignore_https_errors: bool | None = None
    accept_downloads: bool = False
    service_workers: Literal["allow", "block"] | None = None
    permissions: list[str] | None = None
    base_url: str | None = None

    @model_validator(mode="after")
    def _check_isolation(self) -> Self:
        if self.session is not None and self.isolation not in {None, "session"}:
            raise ValueError(f"a session is not for isolation '{self.isolation}'")
        if self.isolation == "session" and self.session is None:
            raise ValueError("isolation 'session' needs the session's name: session")
        return self

    @property
    def mode(self) -> Isolation:
        """What the page shares with other jobs."""
        return self.isolation or ("session" if self.session is not None else "fresh")

    @property
    def key(self) -> str:
        """Pages of equal keys can stand in for each other. It may hold secrets."""
        untraced = self.trace in {None, "off"} or self.mode == "shared"
        return self.model_dump_json(exclude_defaults=True, exclude={"isolation", "session", *(["trace"] * untraced)})

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Page options from a mapping such as `@job(browser=…)`.

        Raises:
            InvalidArguments: an unknown or impossible option; `problems` names each.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            problems = [
                Problem("".join(f"/{part}" for part in detail["loc"]), detail["msg"])
                for detail in error.errors(include_url=False, include_input=False)
            ]
            sentences = "; ".join(f"{problem.path.lstrip('/')}: {problem.message}" for problem in problems)
            hint = f"it takes {', '.join(cls.model_fields)}"
            raise InvalidArguments(f"the browser options do not fit: {sentences}", problems, hint=hint) from None

    def new_context(self) -> dict[str, Any]:
        """The keyword arguments of Playwright's `browser.new_context`."""
        arguments: dict[str, Any] = self.model_dump(exclude_none=True, exclude=OURS)
        for ours, playwrights in (("timezone", "timezone_id"), ("authenticate", "http_credentials")):
            if ours in arguments:
                arguments[playwrights] = arguments.pop(ours)
        return arguments
