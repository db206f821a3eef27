"""`check`: whether a page is as expected, and how long it took. For monitoring."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

from playwright.async_api import ConsoleMessage, Page, Request, Response
from playwright.async_api import Error as PlaywrightError
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.tasks.visit import (
    RETRY,
    Milliseconds,
    Pattern,
    Selector,
    Visited,
    VisitFailed,
    VisitOptions,
    check_visit,
    not_found,
    page_options,
    storable,
    strict,
    visit,
)

MOST_NOTED = 20
LONGEST_NOTE = 300
TIMINGS = """() => {
  const entry = performance.getEntriesByType('navigation')[0];
  if (!entry) return null;
  return {
    dns_ms: entry.domainLookupEnd - entry.domainLookupStart,
    connect_ms: entry.connectEnd - entry.connectStart,
    first_byte_ms: entry.responseStart,
    dom_content_loaded_ms: entry.domContentLoadedEventEnd,
    load_ms: entry.loadEventEnd,
    transferred_bytes: entry.transferSize,
  };
}"""
TEXT = "(wanted) => wanted.map((text) => (document.body?.innerText ?? '').includes(text))"


@strict
class Count(TypedDict):
    """How many elements a selector finds."""

    selector: Selector
    count: Annotated[int, Field(ge=0)]


@strict
class Expectations(TypedDict, total=False):
    """What the page has to be. Each one gets a verdict."""

    status: Annotated[int, Field(ge=100, le=599)]
    title: Annotated[str, Field(description="the whole title")]
    url: Annotated[Pattern, Field(description="a regular expression found in the URL after redirects")]
    text: Annotated[list[str], Field(max_length=100, description="texts that can be seen")]
    no_text: Annotated[list[str], Field(max_length=100, description="texts that cannot")]
    visible: Annotated[list[Selector], Field(max_length=100, description="selectors whose first element can be seen")]
    count: Annotated[list[Count], Field(max_length=100)]
    max_load_ms: Annotated[Milliseconds, Field(description="until the load event, at most")]
    no_console_errors: Annotated[bool, Field(description="no console.error and no uncaught exception")]
    no_failed_requests: Annotated[bool, Field(description="no request that failed or was answered with 400 or above")]


class Verdict(BaseModel):
    """One expectation, and what was there."""

    expectation: str
    expected: str
    found: str
    ok: bool


class Timings(BaseModel):
    """From the browser's Navigation Timing: milliseconds since the navigation began, or the length of a phase."""

    dns_ms: float
    connect_ms: float
    first_byte_ms: float
    dom_content_loaded_ms: float
    load_ms: float = Field(description="0 when the page did not reach its load event")
    transferred_bytes: int


class Checked(Visited):
    """Whether everything was as expected."""

    ok: bool = Field(description="every verdict is ok")
    verdicts: list[Verdict]
    timings: Timings | None = Field(description="null when the page did not load, and for `html`")
    screenshot: Artifact | None = Field(description="what was seen when an expectation failed")


class CheckFailed(Exception):
    """The page is not as expected, and `fail` was asked for."""


@dataclass
class _Noted:
    """What went wrong while the page loaded."""

    errors: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", self._pageerror)
        page.on("requestfailed", self._failed)
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            _note(self.errors, message.text)

    def _pageerror(self, error: PlaywrightError) -> None:
        _note(self.errors, error.message)

    def _failed(self, request: Request) -> None:
        _note(self.requests, f"{request.failure} {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            _note(self.requests, f"{response.status} {response.url}")


def check_expectations(arguments: Mapping[str, Any]) -> None:
    """Refuse at submit a check of nothing."""
    check_visit(arguments)
    if not arguments["expect"]:
        raise ValueError(f"expect is empty; it takes {', '.join(Expectations.__annotations__)}")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_expectations)
async def check(
    page: Page,
    ctx: Context,
    *,
    expect: Expectations,
    fail: Annotated[bool, Field(description="fail the job when an expectation does")] = False,
    **options: Unpack[VisitOptions],
) -> Checked:
    """Answer whether a page is as expected. A page that does not load is a result too: `ok` is false."""
    noted = _Noted()
    noted.watch(page)
    try:
        visited = await visit(page, options, busy_is_news=True)
    except VisitFailed as error:
        verdict = Verdict(expectation="loads", expected="true", found=storable(str(error)), ok=False)
        return await _finish(
            page, ctx, Visited(final_url=storable(page.url), status=None, title=""), [verdict], fail=fail
        )
    verdicts = [*_of_visit(expect, visited), *await _of_page(page, expect)]
    timings = Timings(**answer) if "url" in options and (answer := await page.evaluate(TIMINGS)) else None
    verdicts += _of_load(expect, timings, noted)
    return await _finish(page, ctx, visited, verdicts, fail=fail, timings=timings)


async def _finish(
    page: Page, ctx: Context, visited: Visited, verdicts: list[Verdict], *, fail: bool, timings: Timings | None = None
) -> Checked:
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    picture = await _picture(page, ctx) if wrong else None
    if wrong and fail:
        first = wrong[0]
        raise CheckFailed(f"{len(wrong)} of {len(verdicts)} expectations failed; {first.expectation}: {first.found}")
    return Checked(**visited.model_dump(), ok=not wrong, verdicts=verdicts, timings=timings, screenshot=picture)


async def _picture(page: Page, ctx: Context) -> Artifact | None:
    try:
        image = await page.screenshot(timeout=10_000)
    except PlaywrightError as error:
        ctx.log.warning("no picture of a failed check", reason=error.message.partition("\n")[0])
        return None
    return await ctx.artifact("failed.png", image, media_type="image/png")


def _of_visit(expect: Expectations, visited: Visited) -> list[Verdict]:
    verdicts: list[Verdict] = []
    if "status" in expect:
        verdicts.append(_verdict("status", expect["status"], visited.status, expect["status"] == visited.status))
    if "title" in expect:
        verdicts.append(_verdict("title", expect["title"], visited.title, expect["title"] == visited.title))
    if "url" in expect:
        found = re.search(expect["url"], visited.final_url[:2000]) is not None
        verdicts.append(_verdict("url", expect["url"], visited.final_url, found))
    return verdicts


async def _of_page(page: Page, expect: Expectations) -> list[Verdict]:
    present, absent = expect.get("text", []), expect.get("no_text", [])
    seen: list[bool] = await page.evaluate(TEXT, [*present, *absent]) if present or absent else []
    verdicts = [
        _verdict("text" if number < len(present) else "no_text", text, "there" if there else "not there", ok)
        for number, (text, there) in enumerate(zip([*present, *absent], seen, strict=True))
        for ok in [there == (number < len(present))]
    ]
    for selector in expect.get("visible", []):
        visible = await _visible(page, selector)
        verdicts.append(_verdict("visible", selector, "visible" if visible else "not visible", visible))
    for wanted in expect.get("count", []):
        count = await _count(page, wanted["selector"])
        expected = f"{wanted['count']} of {wanted['selector']}"
        verdicts.append(_verdict("count", expected, count, count == wanted["count"]))
    return verdicts


def _of_load(expect: Expectations, timings: Timings | None, noted: _Noted) -> list[Verdict]:
    verdicts: list[Verdict] = []
    if "max_load_ms" in expect:
        load_ms = timings.load_ms if timings else 0.0
        verdicts.append(_verdict("max_load_ms", expect["max_load_ms"], load_ms, 0 < load_ms <= expect["max_load_ms"]))
    if expect.get("no_console_errors"):
        verdicts.append(_verdict("no_console_errors", "none", "; ".join(noted.errors) or "none", not noted.errors))
    if expect.get("no_failed_requests"):
        found = "; ".join(noted.requests) or "none"
        verdicts.append(_verdict("no_failed_requests", "none", found, not noted.requests))
    return verdicts


async def _visible(page: Page, selector: str) -> bool:
    try:
        return await page.locator(selector).first.is_visible()
    except PlaywrightError as error:
        raise not_found(selector, error) from error


async def _count(page: Page, selector: str) -> int:
    try:
        return await page.locator(selector).count()
    except PlaywrightError as error:
        raise not_found(selector, error) from error


def _verdict(expectation: str, expected: object, found: object, ok: bool) -> Verdict:
    return Verdict(expectation=expectation, expected=str(expected), found=storable(str(found)), ok=ok)


def _note(notes: list[str], note: str) -> None:
    if len(notes) < MOST_NOTED:
        notes.append(note[:LONGEST_NOTE])
