"""`download`: the file at a URL, stored as an artifact."""

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
    page_deadline,
    storable,
    visit,
)
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

MAX_BYTES = 100 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
MaxFileBytes = Annotated[
    int,
    Field(ge=1, le=1024 * 1024 * 1024, description="maximum size of the file in bytes; a larger file fails the job"),
]


class DownloadResult(BaseModel):
    """The stored file and its origin."""

    url: str = Field(description="URL after redirects")
    suggested_name: str = Field(description="file name that the server suggested")
    artifact: Artifact


def check_download(arguments: Mapping[str, Any]) -> None:
    """Reject arguments that cannot lead to a download, at submission."""
    check_visit(arguments)
    if "html" in arguments:
        raise ValueError("download takes a url, not html")


def download_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return the options of a page that accepts downloads."""
    return {**page_options(arguments), "accept_downloads": True}


@job(browser=download_options, retries=RETRY, per_host={}, check=check_download)
async def download(
    page: Page, ctx: Context, *, max_bytes: MaxFileBytes = MAX_BYTES, **options: Unpack[VisitOptions]
) -> DownloadResult:
    """Download the file at a URL and store it as an artifact. A URL that shows a page fails the job."""
    started: asyncio.Future[Download] = asyncio.get_running_loop().create_future()

    def on_download(found: Download) -> None:
        if not started.done():
            started.set_result(found)

    page.on("download", on_download)
    try:
        async with page_deadline(options):
            visited = await visit(page, options)
    except DownloadRefused:
        return await _keep_started(ctx, started, options, max_bytes)
    raise VisitFailed(f"{visited.final_url} is a page, not a file to download; use the job 'content'")


async def _keep_started(
    ctx: Context, started: "asyncio.Future[Download]", options: VisitOptions, max_bytes: int
) -> DownloadResult:
    timeout_s = options.get("goto_options", {}).get("timeout", 30_000) / 1000
    try:
        async with asyncio.timeout(timeout_s):
            found = await started
            return await keep_download(ctx, found, max_bytes)
    except TimeoutError as error:
        raise LoadTimeout(f"{options.get('url')} was not downloaded within {timeout_s:g} s") from error


async def keep_download(ctx: Context, found: Download, max_bytes: int, name: str | None = None) -> DownloadResult:
    """Wait until a download is complete and store its file as an artifact, in chunks.

    Args:
        ctx: context of the job, which stores the artifact.
        found: the download that the page started.
        max_bytes: maximum size, bytes. The size is known only when the file has arrived.
        name: name of the artifact; None: derived from the name that the server suggested.

    Returns:
        The artifact, the URL and the suggested name.

    Raises:
        TooLarge: the file has more than `max_bytes`.
        VisitFailed: the transfer was interrupted.
    """
    try:
        path = Path(await found.path())
    except (PlaywrightError, PlaywrightTimeout) as error:
        reason = error.message.partition("\n")[0]
        raise VisitFailed(f"the download of {found.url} was interrupted: {reason}") from error
    size = (await asyncio.to_thread(path.stat)).st_size
    if size > max_bytes:
        raise TooLarge(f"{found.url} has {size:,} bytes, more than {max_bytes:,} (see max_bytes)")
    suggested = storable(found.suggested_filename)
    media_type = mimetypes.guess_type(suggested)[0]
    artifact = await ctx.artifact(name or file_name(suggested), _chunks(path), media_type=media_type)
    return DownloadResult(url=storable(found.url), suggested_name=suggested, artifact=artifact)


def file_name(suggested: str) -> str:
    """Return a valid artifact name for the file name that a server suggested."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", suggested).lstrip(".")[-200:] or "download"


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
