"""`snapshot`: the HTML of a page and a screenshot of it, in one visit."""

from typing import Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.capture import capture
from cplane.tasks.content import MAX_BYTES, MaxBytes, keep_text, read_html
from cplane.tasks.visit import RETRY, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options


class Snapshot(VisitResult):
    """The HTML, as the job `content` returns it, and the screenshot."""

    html: str | None = Field(description="null if it is longer than 256 KiB")
    content: Artifact | None = Field(description="the file content.html if `html` is null")
    screenshot: Artifact


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def snapshot(
    page: Page,
    ctx: Context,
    *,
    full_page: bool = False,
    max_bytes: MaxBytes = MAX_BYTES,
    **options: Unpack[VisitOptions],
) -> Snapshot:
    """Return the HTML of a page together with a screenshot of the same moment."""
    async with page_deadline(options):
        visited = await visit(page, options)
        html = await read_html(page, max_bytes)
        image = await capture(page, full_page=full_page)
    text, long_text = await keep_text(ctx, html, "content.html", "text/html")
    screenshot = await ctx.artifact("screenshot.png", image, media_type="image/png")
    return Snapshot(**visited.model_dump(), html=text, content=long_text, screenshot=screenshot)
