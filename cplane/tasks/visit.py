"""A visit: what the built-in jobs share. Which page to open, as whom, what to wait for, and what to leave out."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Response, Route
from playwright.async_api import TimeoutError as PlaywrightTimeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, with_config
from typing_extensions import TypedDict

from cplane import HostUnreachable, RetryPolicy, retry_after

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
PLAYWRIGHTS_NAME = {"http_only": "httpOnly", "same_site": "sameSite"}
INVALID_SELECTOR = (
    "Unexpected token",
    "is not a valid selector",
    "Unknown engine",
    "while parsing",
    "Malformed selector",
)
UNREACHABLE = ("net::ERR_NAME_", "net::ERR_CONNECTION_", "net::ERR_ADDRESS_", "net::ERR_INTERNET_", "net::ERR_NETWORK_",
               "net::ERR_PROXY_", "net::ERR_TIMED_OUT", "net::ERR_EMPTY_RESPONSE", "net::ERR_SOCKS_")  # fmt: skip
UNREACHABLE_WORDS = {
    "net::ERR_NAME_NOT_RESOLVED": "there is no such host",
    "net::ERR_CONNECTION_REFUSED": "the connection was refused",
    "net::ERR_CONNECTION_RESET": "the connection was reset",
    "net::ERR_EMPTY_RESPONSE": "the server closed the connection without an answer",
}
CODE = re.compile(r"net::ERR_\w+|\b(?:NS|SEC|SSL|MOZILLA_PKIX)_ERROR_\w+")
FIREFOX_CODES = {
    "NS_ERROR_UNKNOWN_HOST": "net::ERR_NAME_NOT_RESOLVED",
    "NS_ERROR_CONNECTION_REFUSED": "net::ERR_CONNECTION_REFUSED",
    "NS_ERROR_NET_RESET": "net::ERR_CONNECTION_RESET",
    "NS_ERROR_NET_TIMEOUT": "net::ERR_TIMED_OUT",
    "NS_ERROR_REDIRECT_LOOP": "net::ERR_TOO_MANY_REDIRECTS",
}
"""Chromium's codes for Firefox's."""
CERTIFICATE = ("net::ERR_CERT_", "net::ERR_SSL_", "SEC_ERROR_", "SSL_ERROR_", "MOZILLA_PKIX_ERROR_")
LONGEST_PATTERN = 500
LONGEST_MATCHED_URL = 2000

strict = with_config(ConfigDict(extra="forbid"))


class VisitFailed(Exception):
    """The page is not what the job asked for; the message says what it is instead."""


class Unreachable(VisitFailed):
    """There is no connection to the server: its name, its port or the network. The only failure worth a retry."""


class CertificateInvalid(VisitFailed):
    """The server's certificate is not trusted."""


class TooManyRedirects(VisitFailed):
    """The page redirects without end."""


class DownloadRefused(VisitFailed):
    """The URL is a file to download and not a page."""


class LoadTimeout(VisitFailed):
    """The page did not load in time."""


class StatusRefused(VisitFailed):
    """The page answered with an HTTP status of 400 or above, and `fail_on_http_status` was asked for."""


class ElementMissing(VisitFailed):
    """There is no such element, or it did not get into the state that was waited for."""


class SelectorInvalid(VisitFailed):
    """The selector is not one."""


class TooLarge(VisitFailed):
    """The page or file is larger than `max_bytes`."""


RETRY = RetryPolicy(retries=2, on=(Unreachable, HostUnreachable))
"""For all built-in jobs: a server that cannot be reached may be there in a moment; a wrong selector stays wrong."""


def _check_url(url: str) -> str:
    HTTP_URL.validate_python(url)
    return url


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
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
Pattern = Annotated[str, Field(min_length=1, max_length=LONGEST_PATTERN), AfterValidator(_check_pattern)]
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
    """When a page counts as loaded: `load` within 30 s unless told otherwise."""

    wait_until: Literal["load", "domcontentloaded", "networkidle", "commit"]
    timeout: Milliseconds


@strict
class WaitForSelector(TypedDict):
    """An element to wait for; visible, within 30 s, unless told otherwise."""

    selector: Selector
    state: NotRequired[Literal["attached", "detached", "visible", "hidden"]]
    timeout: NotRequired[Milliseconds]


@strict
class Viewport(TypedDict):
    """The size of the page's window in CSS pixels."""

    width: Pixels
    height: Pixels


@strict
class Credentials(TypedDict):
    """A user of HTTP authentication; only the server of the job's own URL gets them."""

    username: str
    password: str


@strict
class Proxy(TypedDict):
    """The proxy that the page's requests go through."""

    server: Annotated[str, AfterValidator(_check_proxy), Field(description="http://host:port or socks5://host:port")]
    bypass: NotRequired[Annotated[str, Field(description="comma-separated hosts that are reached directly")]]
    username: NotRequired[str]
    password: NotRequired[str]


@strict
class Cookie(TypedDict):
    """A cookie; without `url` or `domain` it is for the job's own URL."""

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
    """What the page is told about who looks at it."""

    media: Literal["screen", "print"]
    color_scheme: Literal["light", "dark", "no-preference"]
    reduced_motion: Literal["reduce", "no-preference"]
    forced_colors: Literal["active", "none"]


@strict
class Tag(TypedDict, total=False):
    """A script or style to add, by address or as text."""

    url: Url
    content: str


class VisitOptions(TypedDict, total=False):
    """What every built-in job takes besides its own arguments. `url` or `html` must be there."""

    url: Annotated[Url, Field(description="the page to open")]
    html: Annotated[str, Field(description="a page as text, instead of `url`")]
    goto_options: GotoOptions
    wait_for_selector: Annotated[Selector | WaitForSelector, Field(description="an element to wait for after loading")]
    wait_for_timeout: Annotated[Milliseconds, Field(description="milliseconds to wait after everything else")]
    viewport: Viewport
    user_agent: Annotated[str, Field(min_length=1)]
    locale: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$", description="for example de-DE")]
    timezone: Annotated[str, AfterValidator(_check_timezone), Field(description="for example Europe/Berlin")]
    cookies: list[Cookie]
    authenticate: Credentials
    extra_http_headers: Annotated[dict[str, str], Field(description="sent with every request of the page")]
    java_script_enabled: bool
    emulate_media: Media
    add_script_tag: list[Tag]
    add_style_tag: list[Tag]
    reject_resource_types: Annotated[list[ResourceType], Field(description="requests of these types are not made")]
    reject_request_pattern: Annotated[list[Pattern], Field(description="nor requests whose URL matches one of these")]
    session: Annotated[
        str,
        Field(
            pattern=SESSION_NAME.pattern,
            description="the browser session the page begins with, and keeps its changes in",
        ),
    ]
    proxy: Proxy
    ignore_https_errors: Annotated[bool, Field(description="open pages whose certificate is not trusted")]
    device_scale_factor: Annotated[float, Field(gt=0, le=10, description="device pixels for each CSS pixel")]
    is_mobile: Annotated[bool, Field(description="whether the page's viewport tag counts")]
    has_touch: Annotated[bool, Field(description="whether the device has a touch screen")]
    permissions: Annotated[list[Permission], Field(description="what the page may do without asking")]
    fail_on_http_status: Annotated[bool, Field(description="fail when the page answers 400 or above")]


class Visited(BaseModel):
    """The page that was opened in the end."""

    final_url: str = Field(description="after redirects; about:blank for `html`")
    status: int | None = Field(description="the HTTP status; null for `html`")
    title: str


def check_visit(arguments: Mapping[str, Any]) -> None:
    """Refuse at submit what cannot be visited."""
    if "url" in arguments and "html" in arguments:
        raise ValueError("give either url or html, not both")
    if "url" not in arguments and "html" not in arguments:
        raise ValueError("give url or html")
    if "password" in arguments.get("proxy", {}) and "username" not in arguments["proxy"]:
        raise ValueError("a proxy's password needs a username")
    if "html" in arguments and "authenticate" in arguments:
        raise ValueError("authenticate is for a url, not for html")
    for cookie in arguments.get("cookies", ()):
        if "html" in arguments and "url" not in cookie and "domain" not in cookie:
            raise ValueError(f"with html, cookie '{cookie['name']}' needs a url or a domain")
        if "url" in cookie and ("domain" in cookie or "path" in cookie):
            raise ValueError(f"cookie '{cookie['name']}' takes either a url or a domain and path")
    for name in ("add_script_tag", "add_style_tag"):
        if any(len(tag) != 1 for tag in arguments.get(name, ())):
            raise ValueError(f"{name}: each takes either url or content")


def page_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """What has to be known before the page exists."""
    options: dict[str, object] = {name: arguments[name] for name in PAGE_OPTIONS if name in arguments}
    if "authenticate" in arguments:
        address = urlsplit(str(arguments["url"]))
        options["authenticate"] = {**arguments["authenticate"], "origin": f"{address.scheme}://{address.netloc}"}
    return options


async def visit(page: Page, options: VisitOptions, *, busy_is_news: bool = False) -> Visited:
    """Open the page and wait until it is as asked for.

    Raises:
        TooManyRequests: it answered 429 or 503 with Retry-After, unless that is what the job wants to know (`busy_is_news`).
        VisitFailed: it did not load, answered with an error, or lacks what was waited for.
    """
    await _prepare(page, options)
    response = await _load(page, options)
    status = response.status if response else None
    if response is not None and not busy_is_news:
        retry_after.check(response.status, response.headers.get("retry-after"), page.url)
    if status is not None and status >= 400 and options.get("fail_on_http_status"):
        raise StatusRefused(f"{page.url} answered with HTTP status {status}")
    await _add_tags(page, options)
    if "wait_for_selector" in options:
        await _wait_for(page, options["wait_for_selector"])
    if "wait_for_timeout" in options:
        await page.wait_for_timeout(options["wait_for_timeout"])
    return Visited(final_url=storable(page.url), status=status, title=storable(await page.title()))


def storable(text: str) -> str:
    """Text of a page as it can be stored in JSON: without NUL and lone surrogates, which scripts can make."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def _prepare(page: Page, options: VisitOptions) -> None:
    if cookies := options.get("cookies"):
        await page.context.add_cookies([_cookie(cookie, options) for cookie in cookies])
    if media := options.get("emulate_media"):
        await page.emulate_media(**media)
    types = frozenset(options.get("reject_resource_types", ()))
    patterns = [re.compile(pattern) for pattern in options.get("reject_request_pattern", ())]

    async def judge(route: Route) -> None:
        request = route.request
        url = request.url[:LONGEST_MATCHED_URL]
        rejected = request.resource_type in types or any(pattern.search(url) for pattern in patterns)
        try:
            await (route.abort("blockedbyclient") if rejected else route.fallback())
        except PlaywrightError:  # the page is closing: nobody waits for this request any more
            return

    if types or patterns:
        await page.route("**/*", judge)


async def _add_tags(page: Page, options: VisitOptions) -> None:
    try:
        for script in options.get("add_script_tag", ()):
            await page.add_script_tag(**script)
        for style in options.get("add_style_tag", ()):
            await page.add_style_tag(**style)
    except PlaywrightError as error:
        raise VisitFailed(f"a script or style could not be added to {page.url}: {_reason(error)}") from error


async def _load(page: Page, options: VisitOptions) -> Response | None:
    goto = options.get("goto_options", GotoOptions())
    try:
        if "html" in options:
            await page.set_content(options["html"], **goto)
            return None
        if "url" in options:
            return await page.goto(options["url"], **goto)
    except PlaywrightTimeout as error:
        within_s = goto.get("timeout", 30_000) / 1000
        state = goto.get("wait_until", "load")
        raise LoadTimeout(f"{_name(options)} did not reach '{state}' within {within_s:g} s") from error
    except PlaywrightError as error:
        raise not_loaded(_name(options), error) from error
    raise VisitFailed("there is neither url nor html to visit")


async def _wait_for(page: Page, wanted: str | WaitForSelector) -> None:
    wait: WaitForSelector = {"selector": wanted} if isinstance(wanted, str) else wanted
    state = wait.get("state", "visible")
    timeout_ms = wait.get("timeout", 30_000)
    try:
        await page.locator(wait["selector"]).first.wait_for(state=state, timeout=timeout_ms)
    except PlaywrightTimeout as error:
        message = f"no element '{wait['selector']}' became {state} within {timeout_ms / 1000:g} s"
        raise ElementMissing(message) from error
    except PlaywrightError as error:
        raise not_found(wait["selector"], error) from error


def not_found(selector: str, error: PlaywrightError) -> VisitFailed:
    """What an error of Playwright says about a selector."""
    if any(sign in error.message for sign in INVALID_SELECTOR):
        return SelectorInvalid(f"not a selector: '{selector}'")
    return VisitFailed(f"waiting for '{selector}' failed: {_reason(error)}")


def not_loaded(name: str, error: PlaywrightError) -> VisitFailed:
    """The failure that the browser's error code stands for."""
    codes: list[str] = CODE.findall(error.message)
    # what Firefox's NS_ERROR is wrapped around says more than it
    code = min(codes, key=lambda code: code.startswith("NS_"), default="")
    kind = FIREFOX_CODES.get(code, code)
    if "Download is starting" in error.message or kind == "net::ERR_ABORTED":
        return DownloadRefused(f"{name} is a file to download and not a page; the job 'download' takes files")
    if kind.startswith(CERTIFICATE):
        return CertificateInvalid(f"{name} has a certificate that is not trusted: {code} (see ignore_https_errors)")
    if kind == "net::ERR_TOO_MANY_REDIRECTS":
        return TooManyRedirects(f"{name} redirects without end")
    if kind.startswith(UNREACHABLE):
        return Unreachable(f"{name} did not load: {UNREACHABLE_WORDS.get(kind, 'there is no connection')}: {code}")
    reason = _reason(error)
    return VisitFailed(f"{name} did not load: {reason if code in reason else f'{reason} ({code})'}")


def _cookie(cookie: Cookie, options: VisitOptions) -> Any:
    """The cookie as Playwright takes it; its type for that is not public."""
    param = {PLAYWRIGHTS_NAME.get(name, name): value for name, value in cookie.items()}
    if "url" not in cookie and "domain" not in cookie:
        param["url"] = options.get("url")
    if "domain" in cookie:
        param.setdefault("path", "/")
    return param


def _name(options: VisitOptions) -> str:
    return options.get("url", "the html")


def _reason(error: PlaywrightError) -> str:
    """Playwright's sentence without its call log and the method's name."""
    return error.message.partition("\n")[0].partition(": ")[2] or error.message.partition("\n")[0]
