"""`download`: a file that a URL leads to, kept as an artifact."""

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Download, Page
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout
from pydantic import BaseModel, Field

from cplane import Artifact, Context, job
from cplane.tasks.visit import (
    RETRY,
    DownloadRefused,
    LoadTimeout,
    TooLarge,
    VisitFailed,
    VisitOptions,
    check_visit,
    page_options,
    storable,
    visit,
)

MAX_BYTES = 100 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
MaxFileBytes = Annotated[int, Field(ge=1, le=1024 * 1024 * 1024, description="a larger file fails")]


class Downloaded(BaseModel):
    """Where the file is, and where it came from."""

    url: str = Field(description="after redirects")
    suggested_name: str = Field(description="the server's name for the file")
    artifact: Artifact


def check_download(arguments: Mapping[str, Any]) -> None:
    """Refuse at submit what cannot be downloaded."""
    check_visit(arguments)
    if "html" in arguments:
        raise ValueError("download takes a url, not html")


def download_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """The options of the page, which may download."""
    return {**page_options(arguments), "accept_downloads": True}


@job(browser=download_options, retries=RETRY, per_host={}, check=check_download)
async def download(
    page: Page, ctx: Context, *, max_bytes: MaxFileBytes = MAX_BYTES, **options: Unpack[VisitOptions]
) -> Downloaded:
    """Keep the file that a URL leads to. A URL that shows a page fails."""
    started: asyncio.Future[Download] = asyncio.get_running_loop().create_future()

    def note(found: Download) -> None:
        if not started.done():
            started.set_result(found)

    page.on("download", note)
    try:
        visited = await visit(page, options)
    except DownloadRefused:
        return await _keep_started(ctx, started, options, max_bytes)
    raise VisitFailed(f"{visited.final_url} is a page and not a file to download; the job 'content' takes pages")


async def _keep_started(
    ctx: Context, started: "asyncio.Future[Download]", options: VisitOptions, max_bytes: int
) -> Downloaded:
    within_s = options.get("goto_options", {}).get("timeout", 30_000) / 1000
    try:
        async with asyncio.timeout(within_s):
            found = await started
            return await keep_download(ctx, found, max_bytes)
    except TimeoutError as error:
        raise LoadTimeout(f"{options.get('url')} was not downloaded within {within_s:g} s") from error


async def keep_download(ctx: Context, found: Download, max_bytes: int, name: str | None = None) -> Downloaded:
    """Wait for a download and keep its file, in chunks.

    Raises:
        TooLarge: it has more than `max_bytes`.
        VisitFailed: it broke off.
    """
    try:
        path = Path(await found.path())
    except (PlaywrightError, PlaywrightTimeout) as error:
        raise VisitFailed(f"the download of {found.url} broke off: {error.message.partition(chr(10))[0]}") from error
    size = (await asyncio.to_thread(path.stat)).st_size
    if size > max_bytes:
        raise TooLarge(f"{found.url} has {size:,} bytes, more than {max_bytes:,} (see max_bytes)")
    suggested = storable(found.suggested_filename)
    media_type = mimetypes.guess_type(suggested)[0]
    artifact = await ctx.artifact(name or file_name(suggested), _chunks(path), media_type=media_type)
    return Downloaded(url=storable(found.url), suggested_name=suggested, artifact=artifact)


def file_name(suggested: str) -> str:
    """A name that an artifact can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", suggested).lstrip(".")[-200:] or "download"


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
