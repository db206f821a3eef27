"""Page options: what a job's page shares with other jobs, its viewport, identity, locale and credentials."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cplane.errors import InvalidArguments, Problem

CPLANE_OPTIONS = {"isolation", "session", "egress", "trace", "caller_scripts"}
"""Options that are cplane's own and not passed to Playwright."""

MAX_PIXELS = 100_000_000
"""Device pixels of a viewport or a screenshot. Above about 110 million, Chromium silently leaves a screenshot white; a
viewport of 268 million takes 4 GiB (measured).
"""


def check_pixels(viewport: Mapping[str, int] | None, scale: float | None) -> None:
    """Reject a viewport with more than 100 million device pixels.

    Args:
        viewport: its `width` and `height`, CSS pixels; None: the default.
        scale: device pixels per CSS pixel; None: 1.

    Raises:
        ValueError: it is larger.
    """
    width, height = (viewport["width"], viewport["height"]) if viewport is not None else (1280, 720)
    scale = 1 if scale is None else scale
    if width * height * scale**2 > MAX_PIXELS:
        scaled = f" at {scale:g} device pixels per CSS pixel" if scale != 1 else ""
        raise ValueError(
            f"a viewport of {width:,} × {height:,} pixels{scaled} is larger than {MAX_PIXELS:,} device pixels:"
            " lower viewport or device_scale_factor"
        )


def _check_locale(locale: str) -> str:
    if not all(part.isalnum() and part.isascii() for part in locale.split("-")):
        raise ValueError("a locale is a language tag, for example de-DE")
    return locale


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Viewport(Strict):
    """Size of the page in CSS pixels."""

    width: int = Field(ge=1, le=16384)
    height: int = Field(ge=1, le=16384)


class Authenticate(Strict):
    """Credentials for HTTP authentication (Basic, Digest), sent when a server requests them."""

    username: str
    password: str = Field(repr=False)
    origin: str | None = Field(
        default=None, description="origin that receives them, https://host:port; default: any that requests them"
    )


class Proxy(Strict):
    """Proxy for the requests of the page."""

    server: str = Field(description="http://host:port or socks5://host:port")
    bypass: str | None = Field(default=None, description="comma-separated hosts that are connected to directly")
    username: str | None = None
    password: str | None = Field(default=None, repr=False)


Isolation = Literal["fresh", "session", "shared"]
Trace = Literal["off", "on-failure", "on"]


class PageOptions(Strict):
    """Options of a page and its browser context. Those not given have Chromium's default; downloads are off.

    `@job(browser=…)` takes the same options as a mapping.

    Example:
        ```python
        from cplane import ControlPlane, job
        from playwright.async_api import Page


        @job(browser={"locale": "de-DE", "timezone": "Europe/Berlin", "viewport": {"width": 800, "height": 600}})
        async def read_locale(page: Page, url: str) -> str:
            await page.goto(url)
            return await page.evaluate("navigator.language")


        async with ControlPlane():
            handle = await read_locale.submit("https://example.com/")
            assert await handle.result(timeout=30) == "de-DE"
        ```
    """

    isolation: Isolation | None = Field(
        default=None,
        description="fresh (default): a context that no other job uses; session: one that starts with the stored login "
        "of a named session; shared: one context for all jobs of this name",
    )
    session: str | None = Field(default=None, min_length=1, description="name of the browser session")
    egress: Literal["public", "any"] | None = Field(
        default=None,
        description="any: allow every address, whatever CPLANE_EGRESS says; for jobs that take no address from outside",
    )
    trace: Trace | None = Field(
        default=None,
        description="Playwright trace of an attempt: kept if it fails (on-failure, default), always (on), never (off)",
    )
    caller_scripts: tuple[Literal["add_script_tag", "html"], ...] = Field(
        default=(),
        description="arguments by which the caller of the job puts scripts into the page; a browser session must allow "
        "each by name",
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
            raise ValueError(f"isolation '{self.isolation}' does not take a session")
        if self.isolation == "session" and self.session is None:
            raise ValueError("isolation 'session' needs the name of one in `session`")
        return self

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        check_pixels(self.viewport.model_dump() if self.viewport else None, self.device_scale_factor)
        return self

    @property
    def mode(self) -> Isolation:
        """Isolation of the page: what is given, else "session" for one with a session, else "fresh"."""
        return self.isolation or ("session" if self.session is not None else "fresh")

    @property
    def key(self) -> str:
        """A text that is equal for pages that are interchangeable. It may contain secrets."""
        untraced = self.trace in {None, "off"} or self.mode == "shared"
        return self.model_dump_json(
            exclude_defaults=True, exclude={"isolation", "session", "caller_scripts", *(["trace"] * untraced)}
        )

    @property
    def has_credentials(self) -> bool:
        """Whether the page has credentials of a proxy or of a server, which must not outlive the job that gave them."""
        proxy = self.proxy
        return self.authenticate is not None or (proxy is not None and bool(proxy.username or proxy.password))

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Read page options from a mapping, as in `@job(browser=…)`.

        Args:
            given: options by name.

        Raises:
            InvalidArguments: an option is unknown or has an impossible value; `problems` names each.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            problems = [
                Problem("".join(f"/{part}" for part in detail["loc"]), detail["msg"])
                for detail in error.errors(include_url=False, include_input=False)
            ]
            sentences = "; ".join(f"{problem.path.lstrip('/')}: {problem.message}" for problem in problems)
            hint = f"known options: {', '.join(cls.model_fields)}"
            raise InvalidArguments(f"the browser options do not fit: {sentences}", problems, hint=hint) from None

    def new_context(self) -> dict[str, Any]:
        """Return the keyword arguments for Playwright's `browser.new_context`."""
        arguments: dict[str, Any] = self.model_dump(exclude_none=True, exclude=CPLANE_OPTIONS)
        for name, playwright_name in (("timezone", "timezone_id"), ("authenticate", "http_credentials")):
            if name in arguments:
                arguments[playwright_name] = arguments.pop(name)
        return arguments
