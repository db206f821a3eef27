"""`snapshot`: the HTML of a page and a picture of it, in one visit."""

from typing import Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.content import MAX_BYTES, MaxBytes, keep_text, read_html
from cplane.tasks.picture import take_picture
from cplane.tasks.visit import RETRY, Visited, VisitOptions, check_visit, page_options, visit


class Snapshot(Visited):
    """The HTML, as `content` answers it, and the picture."""

    html: str | None = Field(description="null when it is longer than 256 KiB")
    content: Artifact | None = Field(description="the file content.html when `html` is null")
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
    """Answer the HTML of a page and take its picture at the same moment."""
    visited = await visit(page, options)
    html = await read_html(page, max_bytes)
    image = await take_picture(page, full_page=full_page)
    text, kept = await keep_text(ctx, html, "content.html", "text/html")
    picture = await ctx.artifact("screenshot.png", image, media_type="image/png")
    return Snapshot(**visited.model_dump(), html=text, content=kept, screenshot=picture)
