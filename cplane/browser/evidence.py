"""What a page looked like when its job failed: picture, HTML, console, requests, and Playwright's trace if it was recorded."""

import asyncio
import json
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from playwright.async_api import ConsoleMessage, Request
from playwright.async_api import Error as PlaywrightError

from cplane.browser.lease import PageLease
from cplane.browser.masking import mask_text, mask_trace, mask_url

T = TypeVar("T")

STEP_S = 2.5
"""What any one of them may take; they are fetched side by side, so all of them take hardly more."""
LONGEST_HTML = 2 * 1024 * 1024
LONGEST_TEXT = 2000
LARGEST_TRACE = 50 * 1024 * 1024

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True)
class File:
    """One piece of evidence."""

    name: str
    media_type: str
    data: bytes


async def collect(lease: PageLease, number: int, error: str) -> list[File]:
    """Everything that can be had of the page within a few seconds; what cannot is left out. Secrets are masked.

    Args:
        lease: the page, still open.
        number: the attempt; it is part of every name.
        error: what the job failed with.
    """
    page = lease.page
    if lease.lost:  # there is nothing to see any more, and the job is to run again soon
        told = await _try(_tell(lease, error), "what happened")
        return [_told(number, told or {"error": mask_text(error)})]
    picture, html, told, traced = await asyncio.gather(
        _try(page.screenshot(type="png", timeout=STEP_S * 1000, animations="disabled"), "a picture"),
        _try(page.content(), "its HTML"),
        _try(_tell(lease, error), "what happened"),
        _try(_trace(lease, number), "its trace"),
    )
    files = [_told(number, told or {"error": mask_text(error)})]
    if picture is not None:
        files.append(File(f"failure-{number}.png", "image/png", picture))
    if html is not None:
        masked = await asyncio.to_thread(mask_text, html[:LONGEST_HTML])
        files.append(File(f"failure-{number}.html", "text/html", masked.encode(errors="replace")))
    if traced is not None:
        files.append(File(f"trace-{number}.zip", "application/zip", traced))
    return files


def _told(number: int, told: dict[str, Any]) -> File:
    return File(f"failure-{number}.json", "application/json", json.dumps(told, indent=1).encode())


async def collect_trace(lease: PageLease, number: int) -> list[File]:
    """The trace alone, if one was recorded."""
    traced = await _try(_trace(lease, number), "its trace")
    return [] if traced is None else [File(f"trace-{number}.zip", "application/zip", traced)]


async def _try(step: Awaitable[T], what: str) -> T | None:
    try:
        async with asyncio.timeout(STEP_S):
            return await step
    except (PlaywrightError, TimeoutError, OSError) as error:
        reason = str(error).partition("\n")[0] or "it took too long"
        log.info("a failed job's page is kept without a part", part=what, reason=reason)
        return None


async def _tell(lease: PageLease, error: str) -> dict[str, Any]:
    """Console, errors and requests: Playwright keeps the last ones of each, so a page that works costs nothing for them."""
    page = lease.page
    messages, errors, requests = await asyncio.gather(page.console_messages(), page.page_errors(), page.requests())
    title = ""
    with suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(STEP_S / 3):
            title = await page.title()
    return {
        "error": mask_text(error),
        "url": mask_url(page.url),
        "title": mask_text(title),
        "console": [_message(message) for message in messages],
        "page_errors": [mask_text(str(found))[:LONGEST_TEXT] for found in errors],
        "requests": list(await asyncio.gather(*map(_request, requests))),
        "not_reached": [str(host) for host in (*lease.gate.blocked, *lease.gate.failed)] if lease.gate else [],
    }


def _message(message: ConsoleMessage) -> dict[str, Any]:
    place = message.location
    where = f"{mask_url(place.get('url', ''))}:{place.get('lineNumber', 0)}"
    return {"type": message.type, "text": mask_text(message.text)[:LONGEST_TEXT], "at": where}


async def _request(request: Request) -> dict[str, Any]:
    told: dict[str, Any] = {
        "method": request.method,
        "url": mask_url(request.url)[:LONGEST_TEXT],
        "type": request.resource_type,
    }
    if request.failure is not None:
        return told | {"failure": request.failure}
    with suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(STEP_S / 3):  # of one that is under way there is none yet
            if (response := await request.response()) is not None:
                told["status"] = response.status
                told["took_ms"] = round(request.timing["responseEnd"], 1)
    return told


async def _trace(lease: PageLease, number: int) -> bytes | None:
    if not lease.traced:
        return None
    with lease.folder() as folder:
        recorded, masked = folder / "recorded.zip", folder / f"trace-{number}.zip"
        lease.traced = False
        await lease.context.tracing.stop(path=recorded)
        return await asyncio.to_thread(_masked, recorded, masked)


def _masked(recorded: Path, masked: Path) -> bytes | None:
    return masked.read_bytes() if mask_trace(recorded, masked, LARGEST_TRACE) else None
