"""A visit, which all built-in jobs start with: open the page, wait for it, translate its failures."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Response, Route
from playwright.async_api import TimeoutError as PlaywrightTimeout
from pydantic import BaseModel, Field

from cplane import HostUnreachable, RetryPolicy, retry_after
from cplane.browser import read_json
from cplane.tasks.patterns import UrlPatterns
from cplane.tasks.visit_options import Cookie, GotoOptions, VisitOptions, WaitForSelector

PLAYWRIGHT_COOKIE_NAMES = {"http_only": "httpOnly", "same_site": "sameSite"}
INVALID_SELECTOR = (
    "Unexpected token",
    "is not a valid selector",
    "Unknown engine",
    "while parsing",
    "Malformed selector",
)
UNREACHABLE = ("net::ERR_NAME_", "net::ERR_CONNECTION_", "net::ERR_ADDRESS_", "net::ERR_INTERNET_", "net::ERR_NETWORK_",
               "net::ERR_PROXY_", "net::ERR_TIMED_OUT", "net::ERR_EMPTY_RESPONSE", "net::ERR_SOCKS_")  # fmt: skip
UNREACHABLE_REASONS = {
    "net::ERR_NAME_NOT_RESOLVED": "there is no such host",
    "net::ERR_CONNECTION_REFUSED": "the connection was refused",
    "net::ERR_CONNECTION_RESET": "the connection was reset",
    "net::ERR_EMPTY_RESPONSE": "the server closed the connection without a response",
}
ERROR_CODE = re.compile(r"net::ERR_\w+|\b(?:NS|SEC|SSL|MOZILLA_PKIX)_ERROR_\w+")
FIREFOX_CODES = {
    "NS_ERROR_UNKNOWN_HOST": "net::ERR_NAME_NOT_RESOLVED",
    "NS_ERROR_CONNECTION_REFUSED": "net::ERR_CONNECTION_REFUSED",
    "NS_ERROR_NET_RESET": "net::ERR_CONNECTION_RESET",
    "NS_ERROR_NET_TIMEOUT": "net::ERR_TIMED_OUT",
    "NS_ERROR_REDIRECT_LOOP": "net::ERR_TOO_MANY_REDIRECTS",
}
"""Firefox's error codes and the Chromium codes that they correspond to."""

TITLE = "() => document.title.slice(0, 4096)"
RESPONSE_S = 25.0
"""What a visit and reading the page may take beyond the timeouts that the options give. Most calls of a page have no
timeout of their own. With the evidence of the failure, a job that hangs ends within 30 s.
"""

CERTIFICATE = ("net::ERR_CERT_", "net::ERR_SSL_", "SEC_ERROR_", "SSL_ERROR_", "MOZILLA_PKIX_ERROR_")


class VisitFailed(Exception):
    """The page is not what the job needs; the message says what it is instead."""


class Unreachable(VisitFailed):
    """The connection to the server failed: host name, port or network. The only failure that is worth a retry."""


class CertificateInvalid(VisitFailed):
    """The server's certificate is not trusted."""


class TooManyRedirects(VisitFailed):
    """The page is in a redirect loop."""


class DownloadRefused(VisitFailed):
    """The URL is a file to download, not a page."""


class LoadTimeout(VisitFailed):
    """The page did not load in time."""


class StatusRefused(VisitFailed):
    """The HTTP status of the page was 400 or above, and `fail_on_http_status` was set."""


class ElementMissing(VisitFailed):
    """The element does not exist, or did not reach the expected state in time."""


class SelectorInvalid(VisitFailed):
    """The selector is malformed."""


class PageUnresponsive(VisitFailed):
    """The page stopped responding, for example because a script of it never ends."""


class TooLarge(VisitFailed):
    """The page or file is larger than `max_bytes`, or the screenshot larger than the browser can draw."""


class TooComplex(VisitFailed):
    """The page could not be converted in time."""


RETRY = RetryPolicy(retries=2, on=(Unreachable, HostUnreachable))
"""For all built-in jobs: an unreachable server may be reachable a moment later; a malformed selector stays
malformed.
"""


class VisitResult(BaseModel):
    """The page that was opened."""

    final_url: str = Field(description="URL after redirects; about:blank for `html`")
    status: int | None = Field(description="HTTP status; null for `html`")
    title: str


@asynccontextmanager
async def page_deadline(options: VisitOptions) -> AsyncGenerator[None]:
    """Limit how long a block waits for a page: 25 s beyond the timeouts that the options give.

    Args:
        options: the shared arguments of the job.

    Raises:
        PageUnresponsive: the block took longer, and was cancelled.
    """
    waits_ms = options.get("goto_options", {}).get("timeout", 30_000) + options.get("wait_for_timeout", 0)
    if "wait_for_selector" in options:
        wanted = options["wait_for_selector"]
        waits_ms += 30_000 if isinstance(wanted, str) else wanted.get("timeout", 30_000)
    seconds = waits_ms / 1000 + RESPONSE_S
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        message = f"{_page_name(options)} stopped responding: the job did not get what it needs within {seconds:g} s"
        raise PageUnresponsive(message) from error


async def visit(page: Page, options: VisitOptions, *, accept_busy: bool = False) -> VisitResult:
    """Open the page and wait for everything that the options ask for.

    Args:
        page: a fresh page, created with `page_options(options)`.
        options: the shared arguments of the job.
        accept_busy: return the status of a 429 or 503 with Retry-After as a result instead of raising.

    Returns:
        The final URL, the HTTP status and the title.

    Raises:
        TooManyRequests: the response was 429 or 503 with Retry-After, and `accept_busy` is false.
        VisitFailed: the page did not load, its status was refused, or the awaited element did not appear.
    """
    await _prepare(page, options)
    response = await _load(page, options)
    status = response.status if response else None
    if response is not None and not accept_busy:
        retry_after.check(response.status, response.headers.get("retry-after"), page.url)
    if status is not None and status >= 400 and options.get("fail_on_http_status"):
        raise StatusRefused(f"{page.url} returned HTTP status {status}")
    await _add_tags(page, options)
    if "wait_for_selector" in options:
        await _wait_for(page, options["wait_for_selector"])
    if "wait_for_timeout" in options:
        await page.wait_for_timeout(options["wait_for_timeout"])
    return VisitResult(final_url=storable(page.url), status=status, title=await read_title(page))


async def read_title(page: Page) -> str:
    """Return the title of the page: its first 4096 characters, as browsers show it."""
    return str(await read_json(page, TITLE))


def storable(text: str) -> str:
    """Return a page's text in a form that JSON in Postgres can store.

    Scripts can produce NUL and lone surrogates. Each is replaced by U+FFFD.
    """
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def _prepare(page: Page, options: VisitOptions) -> None:
    if cookies := options.get("cookies"):
        await page.context.add_cookies([_cookie(cookie, options) for cookie in cookies])
    if media := options.get("emulate_media"):
        await page.emulate_media(**media)
    types = frozenset(options.get("reject_resource_types", ()))
    patterns = UrlPatterns(options.get("reject_request_pattern", ()))

    async def filter_request(route: Route) -> None:
        request = route.request
        rejected = request.resource_type in types or await patterns.any_matches(request.url)
        try:
            await (route.abort("blockedbyclient") if rejected else route.fallback())
        except PlaywrightError:  # the page is closing: its requests do not matter any more
            return

    if types or patterns:
        await page.route("**/*", filter_request)


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
        timeout_s = goto.get("timeout", 30_000) / 1000
        state = goto.get("wait_until", "load")
        raise LoadTimeout(f"{_page_name(options)} did not reach '{state}' within {timeout_s:g} s") from error
    except PlaywrightError as error:
        raise load_failure(_page_name(options), error) from error
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
        raise selector_failure(wait["selector"], error) from error


def selector_failure(selector: str, error: PlaywrightError) -> VisitFailed:
    """Translate an error of Playwright that concerns a selector.

    Args:
        selector: the selector that was used.
        error: what Playwright raised.

    Returns:
        `SelectorInvalid` if the selector is malformed, else a plain `VisitFailed`.
    """
    if any(sign in error.message for sign in INVALID_SELECTOR):
        return SelectorInvalid(f"not a selector: '{selector}'")
    return VisitFailed(f"waiting for '{selector}' failed: {_reason(error)}")


def load_failure(name: str, error: PlaywrightError) -> VisitFailed:
    """Translate the browser's error code into a kind of `VisitFailed`.

    Args:
        name: what did not load, for the message: the URL, or "the html".
        error: what Playwright raised, from Chromium or Firefox.

    Returns:
        The most specific kind; a plain `VisitFailed` for an unknown code.
    """
    codes: list[str] = ERROR_CODE.findall(error.message)
    # Firefox wraps the specific code in a general NS_ERROR: prefer the inner one
    code = min(codes, key=lambda code: code.startswith("NS_"), default="")
    kind = FIREFOX_CODES.get(code, code)
    if "Download is starting" in error.message or kind == "net::ERR_ABORTED":
        return DownloadRefused(f"{name} is a file to download, not a page; use the job 'download'")
    if kind.startswith(CERTIFICATE):
        return CertificateInvalid(f"{name} has a certificate that is not trusted: {code} (see ignore_https_errors)")
    if kind == "net::ERR_TOO_MANY_REDIRECTS":
        return TooManyRedirects(f"{name} is in a redirect loop")
    if kind.startswith(UNREACHABLE):
        return Unreachable(f"{name} did not load: {UNREACHABLE_REASONS.get(kind, 'the connection failed')}: {code}")
    reason = _reason(error)
    return VisitFailed(f"{name} did not load: {reason if code in reason else f'{reason} ({code})'}")


def _cookie(cookie: Cookie, options: VisitOptions) -> Any:
    """Return the cookie in Playwright's format, whose type is not public."""
    param = {PLAYWRIGHT_COOKIE_NAMES.get(name, name): value for name, value in cookie.items()}
    if "url" not in cookie and "domain" not in cookie:
        param["url"] = options.get("url")
    if "domain" in cookie:
        param.setdefault("path", "/")
    return param


def _page_name(options: VisitOptions) -> str:
    return options.get("url", "the html")


def _reason(error: PlaywrightError) -> str:
    """Return the first sentence of Playwright's message, without its call log and the method's name."""
    return error.message.partition("\n")[0].partition(": ")[2] or error.message.partition("\n")[0]
