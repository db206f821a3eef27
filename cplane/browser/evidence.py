"""Evidence of a failed job's page: screenshot, HTML, console, requests, and Playwright's trace if one was recorded."""

import asyncio
import json
import os
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
from playwright.async_api import ConsoleMessage, Page, Request
from playwright.async_api import Error as PlaywrightError

from cplane.browser.lease import PageLease
from cplane.browser.masking import is_list, mask_page, mask_trace, mask_value
from cplane.browser.reading import read_json, read_text
from cplane.errors import CplaneError
from cplane.runtime.known_secrets import NOTHING_KNOWN, KnownSecrets, in_cookies, in_json, mask_forms
from cplane.runtime.offload import RemoteError, run_blocking

T = TypeVar("T")

STEP_S = 2.5
"""Timeout of each part; they are fetched concurrently, so all of them take hardly longer."""
MAX_HTML_CHARS = 2 * 1024 * 1024
TITLE = "() => document.title.slice(0, 4096)"
HTML = "(limit) => (document.documentElement?.outerHTML ?? '').slice(0, limit)"
MAX_TEXT_CHARS = 2000
MAX_TRACE_BYTES = 50 * 1024 * 1024
THREAD_CHARS = 256 * 1024
"""Longer pages are masked in a process: masking holds the interpreter for much of the time, and cannot be stopped."""
THREAD_TRACE_BYTES = 2 * 1024 * 1024
"""The same for traces."""

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True)
class File:
    """One file of evidence."""

    name: str
    media_type: str
    data: bytes


class _Masks:
    """Masks what is known to be a secret and what looks like one."""

    def __init__(self, known: KnownSecrets) -> None:
        self.known = known

    async def report(self, report: dict[str, Any]) -> bytes:
        return (await asyncio.to_thread(_masked_report, report, self.known.forms)).encode()

    async def page(self, html: str) -> str:
        if len(html) <= THREAD_CHARS:
            return await asyncio.to_thread(mask_page, html, self.known.forms)
        return await run_blocking(mask_page, html, self.known.forms, timeout_s=STEP_S)

    async def trace(self, recorded: Path, masked: Path) -> bool:
        arguments = (str(recorded), str(masked), MAX_TRACE_BYTES, self.known.forms)
        if await asyncio.to_thread(os.path.getsize, recorded) <= THREAD_TRACE_BYTES:
            return await asyncio.to_thread(mask_trace, *arguments)
        return await run_blocking(mask_trace, *arguments, timeout_s=STEP_S)


async def collect(lease: PageLease, number: int, error: str, known: KnownSecrets = NOTHING_KNOWN) -> list[File]:
    """Collect the evidence of a page within a few seconds. Parts that fail are left out; secrets are masked.

    Args:
        lease: the page, still open.
        number: the attempt's number; it is part of every file name.
        error: what the job failed with.
        known: values that are secrets; the cookies of the page are masked, too.

    Returns:
        `failure-N.json`, then as far as they could be had `failure-N.png`, `failure-N.html` and `trace-N.zip`.
    """
    page = lease.page
    if lease.lost:  # there is nothing left to capture, and the job should run again soon
        return [await _report_file(lease, number, error, _Masks(known))]
    masks = await _masks(lease, known)
    screenshot, html, trace, report = await asyncio.gather(
        _try(page.screenshot(type="png", timeout=STEP_S * 1000, animations="disabled"), "screenshot"),
        _try(_html(page, masks), "html"),
        _try(_trace(lease, number, masks), "trace"),
        _report_file(lease, number, error, masks),
    )
    files = [report]
    if screenshot is not None:
        files.append(File(f"failure-{number}.png", "image/png", screenshot))
    if html is not None:
        files.append(File(f"failure-{number}.html", "text/html", html.encode(errors="replace")))
    if trace is not None:
        files.append(File(f"trace-{number}.zip", "application/zip", trace))
    return files


async def collect_trace(lease: PageLease, number: int, known: KnownSecrets = NOTHING_KNOWN) -> list[File]:
    """Collect the trace only.

    Args:
        lease: the page, still open.
        number: the attempt's number; it is part of the file name.
        known: values that are secrets; the cookies of the page are masked, too.

    Returns:
        One file, `trace-N.zip`; empty if no trace was recorded.
    """
    trace = await _try(_trace(lease, number, await _masks(lease, known)), "trace")
    return [] if trace is None else [File(f"trace-{number}.zip", "application/zip", trace)]


async def _try(step: Awaitable[T], part: str) -> T | None:
    """Return the result of a step; None if it fails or takes too long."""
    try:
        async with asyncio.timeout(STEP_S):
            return await step
    except (PlaywrightError, TimeoutError, OSError, RemoteError, CplaneError) as error:
        reason = str(error).partition("\n")[0] or "it took too long"
        log.info("evidence_incomplete", part=part, reason=reason)
        return None


async def _masks(lease: PageLease, known: KnownSecrets) -> _Masks:
    """Return what masks the known secrets and the cookies of the page."""
    cookies = await _try(_cookies(lease), "cookies")
    return _Masks(known | in_cookies(cookies or []))


async def _cookies(lease: PageLease) -> list[dict[str, Any]]:
    async with asyncio.timeout(STEP_S / 3):
        return cast("list[dict[str, Any]]", await lease.context.cookies())


async def _html(page: Page, masks: _Masks) -> str:
    return await masks.page(await read_text(page, HTML, MAX_HTML_CHARS, max_bytes=4 * MAX_HTML_CHARS))


async def _report(lease: PageLease, error: str) -> dict[str, Any]:
    """Collect console, errors and requests. Playwright keeps the last ones anyway: a page that works pays nothing."""
    page = lease.page
    messages, errors, requests = await asyncio.gather(page.console_messages(), page.page_errors(), page.requests())
    title = ""
    with suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(STEP_S / 3):
            title = str(await read_json(page, TITLE))
    return {
        "error": error,
        "url": page.url,
        "title": title,
        "console": [_message(message) for message in messages],
        "page_errors": [str(found)[: 4 * MAX_TEXT_CHARS] for found in errors],
        "requests": list(await asyncio.gather(*map(_request, requests))),
        "not_reached": [str(host) for host in (*lease.gate.blocked, *lease.gate.failed)] if lease.gate else [],
    }


async def _report_file(lease: PageLease, number: int, error: str, masks: _Masks) -> File:
    report = await _try(_report(lease, error), "report") or {"error": error}
    return File(f"failure-{number}.json", "application/json", await masks.report(report))


def _masked_report(report: dict[str, Any], known: Sequence[str]) -> str:
    """Return a report as JSON, masked; a text is cut afterwards, because half a secret would not be recognised."""
    text = mask_forms(json.dumps(report), in_json(known))
    return json.dumps(_cut(mask_value(json.loads(text))), indent=1)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_TEXT_CHARS]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in cast("dict[str, Any]", value).items()}
    return [_cut(item) for item in value] if is_list(value) else value


def _message(message: ConsoleMessage) -> dict[str, Any]:
    location = message.location
    source = f"{location.get('url', '')}:{location.get('lineNumber', 0)}"
    return {"type": message.type, "text": message.text[: 4 * MAX_TEXT_CHARS], "at": source}


async def _request(request: Request) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "method": request.method,
        "url": request.url[: 4 * MAX_TEXT_CHARS],
        "type": request.resource_type,
    }
    if request.failure is not None:
        return entry | {"failure": request.failure}
    with suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(STEP_S / 3):  # a request in flight has no response yet
            if (response := await request.response()) is not None:
                entry["status"] = response.status
                entry["took_ms"] = round(request.timing["responseEnd"], 1)
    return entry


async def _trace(lease: PageLease, number: int, masks: _Masks) -> bytes | None:
    if not lease.traced:
        return None
    with lease.folder() as folder:
        recorded, masked = folder / "recorded.zip", folder / f"trace-{number}.zip"
        lease.traced = False
        await lease.context.tracing.stop(path=recorded)
        return await asyncio.to_thread(masked.read_bytes) if await masks.trace(recorded, masked) else None
