"""The arguments that all built-in jobs share: the page, the identity, what to wait for and what to block."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, ConfigDict, Field, HttpUrl, TypeAdapter, with_config
from typing_extensions import TypedDict

from cplane.jobs.page_options import check_pixels
from cplane.tasks import patterns

SESSION_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,199}$")
HTTP_URL = TypeAdapter(HttpUrl)
PAGE_OPTIONS = (
    "session",
    "viewport",
    "user_agent",
    "locale",
    "timezone",
    "extra_http_headers",
    "java_script_enabled",
    "proxy",
    "ignore_https_errors",
    "device_scale_factor",
    "is_mobile",
    "has_touch",
    "permissions",
)
"""The arguments that the browser context is created with."""

CALLER_SCRIPTS = ("add_script_tag", "html")
"""The arguments by which callers put their scripts into the page."""

strict = with_config(ConfigDict(extra="forbid"))
"""Reject unknown members of a typed dict."""


def _check_url(url: str) -> str:
    HTTP_URL.validate_python(url)
    return url


def _check_pattern(pattern: str) -> str:
    patterns.UrlPattern(pattern)
    return pattern


def _check_proxy(server: str) -> str:
    parts = urlsplit(server)
    if parts.scheme not in {"http", "https", "socks5"} or not parts.hostname:
        raise ValueError("not a proxy; write http://host:port or socks5://host:port")
    if "@" in parts.netloc:
        raise ValueError("credentials go into username and password")
    return server


def _check_timezone(timezone: str) -> str:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("not a timezone; write for example Europe/Berlin") from None
    return timezone


Url = Annotated[str, AfterValidator(_check_url), Field(json_schema_extra={"format": "uri"})]
Selector = Annotated[str, Field(min_length=1, max_length=10_000)]
Milliseconds = Annotated[float, Field(ge=0, le=300_000)]
Pattern = Annotated[str, Field(min_length=1, max_length=patterns.MAX_PATTERN_LENGTH), AfterValidator(_check_pattern)]
Pixels = Annotated[int, Field(ge=1, le=16384)]
Permission = Literal["clipboard-read", "clipboard-write", "geolocation", "notifications", "camera", "microphone"]
ResourceType = Literal[
    "document",
    "stylesheet",
    "image",
    "media",
    "font",
    "script",
    "texttrack",
    "xhr",
    "fetch",
    "eventsource",
    "websocket",
    "manifest",
    "other",
]


@strict
class GotoOptions(TypedDict, total=False):
    """When the page counts as loaded. The default is the `load` event, within 30 s."""

    wait_until: Literal["load", "domcontentloaded", "networkidle", "commit"]
    timeout: Milliseconds


@strict
class WaitForSelector(TypedDict):
    """An element to wait for. The defaults are `visible` and a timeout of 30 s."""

    selector: Selector
    state: NotRequired[Literal["attached", "detached", "visible", "hidden"]]
    timeout: NotRequired[Milliseconds]


@strict
class Viewport(TypedDict):
    """The size of the viewport in CSS pixels."""

    width: Pixels
    height: Pixels


@strict
class Credentials(TypedDict):
    """Credentials for HTTP authentication. They are sent only to the origin of the job's own URL."""

    username: str
    password: str


@strict
class Proxy(TypedDict):
    """The proxy for all requests of the page."""

    server: Annotated[str, AfterValidator(_check_proxy), Field(description="http://host:port or socks5://host:port")]
    bypass: NotRequired[Annotated[str, Field(description="comma-separated hosts that are connected to directly")]]
    username: NotRequired[str]
    password: NotRequired[str]


@strict
class Cookie(TypedDict):
    """A cookie. Without `url` or `domain` it is set for the job's own URL."""

    name: Annotated[str, Field(min_length=1)]
    value: str
    url: NotRequired[Url]
    domain: NotRequired[str]
    path: NotRequired[str]
    expires: NotRequired[float]
    http_only: NotRequired[bool]
    secure: NotRequired[bool]
    same_site: NotRequired[Literal["Strict", "Lax", "None"]]


@strict
class Media(TypedDict, total=False):
    """The media type and the user preferences that CSS media queries of the page match."""

    media: Literal["screen", "print"]
    color_scheme: Literal["light", "dark", "no-preference"]
    reduced_motion: Literal["reduce", "no-preference"]
    forced_colors: Literal["active", "none"]


@strict
class Tag(TypedDict, total=False):
    """A script or style to add to the page: either by `url` or as text in `content`."""

    url: Url
    content: str


class VisitOptions(TypedDict, total=False):
    """The arguments that every built-in job accepts in addition to its own. Either `url` or `html` is required."""

    url: Annotated[Url, Field(description="URL of the page to open")]
    html: Annotated[str, Field(description="HTML of the page, instead of `url`")]
    goto_options: GotoOptions
    wait_for_selector: Annotated[
        Selector | WaitForSelector, Field(description="an element to wait for after the page has loaded")
    ]
    wait_for_timeout: Annotated[
        Milliseconds,
        Field(description="milliseconds to wait, after the page has loaded and `wait_for_selector` is met"),
    ]
    viewport: Viewport
    user_agent: Annotated[str, Field(min_length=1)]
    locale: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$", description="for example de-DE")]
    timezone: Annotated[str, AfterValidator(_check_timezone), Field(description="for example Europe/Berlin")]
    cookies: list[Cookie]
    authenticate: Credentials
    extra_http_headers: Annotated[dict[str, str], Field(description="headers to send with every request of the page")]
    java_script_enabled: bool
    emulate_media: Media
    add_script_tag: list[Tag]
    add_style_tag: list[Tag]
    reject_resource_types: Annotated[list[ResourceType], Field(description="block requests of these types")]
    reject_request_pattern: Annotated[
        list[Pattern],
        Field(
            max_length=patterns.MAX_PATTERNS,
            description="block requests whose URL matches one of these regular expressions (RE2)",
        ),
    ]
    session: Annotated[
        str,
        Field(
            pattern=SESSION_NAME.pattern,
            description="name of the browser session that the page starts with; its changes are saved to the session",
        ),
    ]
    proxy: Proxy
    ignore_https_errors: Annotated[bool, Field(description="open pages whose certificate is not trusted")]
    device_scale_factor: Annotated[float, Field(gt=0, le=10, description="device pixels per CSS pixel")]
    is_mobile: Annotated[bool, Field(description="whether the viewport meta tag of the page is respected")]
    has_touch: Annotated[bool, Field(description="whether the device has a touch screen")]
    permissions: Annotated[list[Permission], Field(description="permissions that are granted without a prompt")]
    fail_on_http_status: Annotated[bool, Field(description="fail if the HTTP status of the page is 400 or above")]


def check_visit(arguments: Mapping[str, Any]) -> None:
    """Reject combinations of arguments that cannot be visited, at submission.

    Args:
        arguments: the job's arguments, already valid one by one.

    Raises:
        ValueError: the arguments contradict each other or lack `url` and `html`.
    """
    if "url" in arguments and "html" in arguments:
        raise ValueError("give either url or html, not both")
    if "url" not in arguments and "html" not in arguments:
        raise ValueError("give url or html")
    check_pixels(arguments.get("viewport"), arguments.get("device_scale_factor"))
    if "password" in arguments.get("proxy", {}) and "username" not in arguments["proxy"]:
        raise ValueError("a proxy's password needs a username")
    if "html" in arguments and "authenticate" in arguments:
        raise ValueError("authenticate requires url; it cannot be used with html")
    for cookie in arguments.get("cookies", ()):
        if "html" in arguments and "url" not in cookie and "domain" not in cookie:
            raise ValueError(f"with html, cookie '{cookie['name']}' needs a url or a domain")
        if "url" in cookie and ("domain" in cookie or "path" in cookie):
            raise ValueError(f"cookie '{cookie['name']}' takes either a url or a domain and path")
    for name in ("add_script_tag", "add_style_tag"):
        if any(len(tag) != 1 for tag in arguments.get(name, ())):
            raise ValueError(f"{name}: each takes either url or content")


def page_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return the options that must be known before the page is created.

    Args:
        arguments: the checked arguments of the job.

    Returns:
        Options for `PageOptions.read`. `authenticate` is bound to the origin of `url`.
    """
    options: dict[str, object] = {name: arguments[name] for name in PAGE_OPTIONS if name in arguments}
    if "authenticate" in arguments:
        address = urlsplit(str(arguments["url"]))
        options["authenticate"] = {**arguments["authenticate"], "origin": f"{address.scheme}://{address.netloc}"}
    if "session" in arguments:
        options["caller_scripts"] = [name for name in CALLER_SCRIPTS if name in arguments]
    return options
