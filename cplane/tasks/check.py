"""`check`: test whether a page is as expected and how long it takes to load, for monitoring."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

from playwright.async_api import ConsoleMessage, Page, Request, Response
from playwright.async_api import Error as PlaywrightError
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.browser import read_json
from cplane.tasks.patterns import UrlPattern
from cplane.tasks.visit import (
    RETRY,
    PageUnresponsive,
    VisitFailed,
    VisitResult,
    page_deadline,
    selector_failure,
    storable,
    visit,
)
from cplane.tasks.visit_options import Milliseconds, Pattern, Selector, VisitOptions, check_visit, page_options, strict

MAX_PROBLEMS = 20
"""Console errors, and failed requests, that a verdict lists."""

MAX_PROBLEM_LENGTH = 300

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
TEXT = """(wanted) => {
  const text = document.body?.innerText ?? '';
  return wanted.map((part) => text.includes(part));
}"""


@strict
class Count(TypedDict):
    """The number of elements that a selector matches."""

    selector: Selector
    count: Annotated[int, Field(ge=0)]


@strict
class Expectations(TypedDict, total=False):
    """What the page is expected to be. Each expectation gets a verdict."""

    status: Annotated[int, Field(ge=100, le=599)]
    title: Annotated[str, Field(description="the complete title")]
    url: Annotated[
        Pattern, Field(description="a regular expression (RE2) that matches a part of the URL after redirects")
    ]
    text: Annotated[list[str], Field(max_length=100, description="texts that are visible on the page")]
    no_text: Annotated[list[str], Field(max_length=100, description="texts that are not visible on the page")]
    visible: Annotated[list[Selector], Field(max_length=100, description="selectors whose first element is visible")]
    count: Annotated[list[Count], Field(max_length=100)]
    max_load_ms: Annotated[Milliseconds, Field(description="maximum time until the load event, milliseconds")]
    no_console_errors: Annotated[bool, Field(description="there is no console.error and no uncaught exception")]
    no_failed_requests: Annotated[bool, Field(description="no request failed or returned a status of 400 or above")]


class Verdict(BaseModel):
    """The result of one expectation: what was expected and what was found."""

    expectation: str
    expected: str
    found: str
    ok: bool


class Timings(BaseModel):
    """Navigation Timing of the browser: milliseconds since the navigation started, or the duration of a phase."""

    dns_ms: float
    connect_ms: float
    first_byte_ms: float
    dom_content_loaded_ms: float
    load_ms: float = Field(description="0 if the page did not reach its load event")
    transferred_bytes: int


class CheckResult(VisitResult):
    """The verdicts and the load times of one page."""

    ok: bool = Field(description="whether every verdict is ok")
    verdicts: list[Verdict]
    timings: Timings | None = Field(description="null if the page did not load, and for `html`")
    screenshot: Artifact | None = Field(description="screenshot of the page if an expectation failed")


class CheckFailed(Exception):
    """The page is not as expected, and `fail` was set."""


@dataclass
class _Problems:
    """Console errors and failed requests while the page loads, each at most `MAX_PROBLEMS`."""

    errors: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def watch(self, page: Page) -> None:
        page.on("console", self._on_console)
        page.on("pageerror", self._on_pageerror)
        page.on("requestfailed", self._on_requestfailed)
        page.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            _append(self.errors, message.text)

    def _on_pageerror(self, error: PlaywrightError) -> None:
        _append(self.errors, error.message)

    def _on_requestfailed(self, request: Request) -> None:
        _append(self.requests, f"{request.failure} {request.url}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            _append(self.requests, f"{response.status} {response.url}")


def check_expectations(arguments: Mapping[str, Any]) -> None:
    """Reject a check without expectations, at submission."""
    check_visit(arguments)
    if not arguments["expect"]:
        raise ValueError(f"expect is empty; it takes {', '.join(Expectations.__annotations__)}")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_expectations)
async def check(
    page: Page,
    ctx: Context,
    *,
    expect: Expectations,
    fail: Annotated[bool, Field(description="fail the job if an expectation fails")] = False,
    **options: Unpack[VisitOptions],
) -> CheckResult:
    """Check whether a page is as expected. A page that does not load is a result too: `ok` is false."""
    problems = _Problems()
    problems.watch(page)
    visited: VisitResult | None = None
    try:
        async with page_deadline(options):
            visited = await visit(page, options, accept_busy=True)
            verdicts = [*_judge_visit(expect, visited), *await _judge_page(page, expect)]
            values = await read_json(page, TIMINGS) if "url" in options else None
    except VisitFailed as error:
        if visited is not None and not isinstance(error, PageUnresponsive):
            raise
        expectation = "loads" if visited is None else "responds"
        verdict = Verdict(expectation=expectation, expected="true", found=storable(str(error)), ok=False)
        visited = visited or VisitResult(final_url=storable(page.url), status=None, title="")
        responds = not isinstance(error, PageUnresponsive)
        return await _finish(page, ctx, visited, [verdict], fail=fail, take_screenshot=responds)
    timings = Timings(**values) if values else None
    verdicts += _judge_load(expect, timings, problems)
    return await _finish(page, ctx, visited, verdicts, fail=fail, timings=timings)


async def _finish(
    page: Page,
    ctx: Context,
    visited: VisitResult,
    verdicts: list[Verdict],
    *,
    fail: bool,
    timings: Timings | None = None,
    take_screenshot: bool = True,
) -> CheckResult:
    failed = [verdict for verdict in verdicts if not verdict.ok]
    screenshot = await _screenshot(page, ctx) if failed and take_screenshot else None
    if failed and fail:
        first = failed[0]
        raise CheckFailed(f"{len(failed)} of {len(verdicts)} expectations failed; {first.expectation}: {first.found}")
    return CheckResult(**visited.model_dump(), ok=not failed, verdicts=verdicts, timings=timings, screenshot=screenshot)


async def _screenshot(page: Page, ctx: Context) -> Artifact | None:
    try:
        image = await page.screenshot(timeout=10_000)
    except PlaywrightError as error:
        ctx.log.warning("check_screenshot_failed", reason=error.message.partition("\n")[0])
        return None
    return await ctx.artifact("failed.png", image, media_type="image/png")


def _judge_visit(expect: Expectations, visited: VisitResult) -> list[Verdict]:
    verdicts: list[Verdict] = []
    if "status" in expect:
        verdicts.append(_verdict("status", expect["status"], visited.status, expect["status"] == visited.status))
    if "title" in expect:
        verdicts.append(_verdict("title", expect["title"], visited.title, expect["title"] == visited.title))
    if "url" in expect:
        matches = UrlPattern(expect["url"]).matches(visited.final_url)
        verdicts.append(_verdict("url", expect["url"], visited.final_url, matches))
    return verdicts


async def _judge_page(page: Page, expect: Expectations) -> list[Verdict]:
    present, absent = expect.get("text", []), expect.get("no_text", [])
    seen: list[bool] = await read_json(page, TEXT, [*present, *absent]) if present or absent else []
    verdicts = [
        _verdict("text" if number < len(present) else "no_text", text, "present" if there else "absent", ok)
        for number, (text, there) in enumerate(zip([*present, *absent], seen, strict=True))
        for ok in [there == (number < len(present))]
    ]
    for selector in expect.get("visible", []):
        visible = await _is_visible(page, selector)
        verdicts.append(_verdict("visible", selector, "visible" if visible else "not visible", visible))
    for wanted in expect.get("count", []):
        count = await _count(page, wanted["selector"])
        expected = f"{wanted['count']} of {wanted['selector']}"
        verdicts.append(_verdict("count", expected, count, count == wanted["count"]))
    return verdicts


def _judge_load(expect: Expectations, timings: Timings | None, problems: _Problems) -> list[Verdict]:
    verdicts: list[Verdict] = []
    if "max_load_ms" in expect:
        load_ms = timings.load_ms if timings else 0.0
        verdicts.append(_verdict("max_load_ms", expect["max_load_ms"], load_ms, 0 < load_ms <= expect["max_load_ms"]))
    if expect.get("no_console_errors"):
        found = "; ".join(problems.errors) or "none"
        verdicts.append(_verdict("no_console_errors", "none", found, not problems.errors))
    if expect.get("no_failed_requests"):
        found = "; ".join(problems.requests) or "none"
        verdicts.append(_verdict("no_failed_requests", "none", found, not problems.requests))
    return verdicts


async def _is_visible(page: Page, selector: str) -> bool:
    try:
        return await page.locator(selector).first.is_visible()
    except PlaywrightError as error:
        raise selector_failure(selector, error) from error


async def _count(page: Page, selector: str) -> int:
    try:
        return await page.locator(selector).count()
    except PlaywrightError as error:
        raise selector_failure(selector, error) from error


def _verdict(expectation: str, expected: object, found: object, ok: bool) -> Verdict:
    return Verdict(expectation=expectation, expected=str(expected), found=storable(str(found)), ok=ok)


def _append(problems: list[str], problem: str) -> None:
    if len(problems) < MAX_PROBLEMS:
        problems.append(problem[:MAX_PROBLEM_LENGTH])
