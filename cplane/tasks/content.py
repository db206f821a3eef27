"""`content`: the HTML of a page, after its scripts ran."""

from typing import Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.visit import Visited, VisitOptions, check_visit, page_options, storable, visit

INLINE_BYTES = 256 * 1024


class Content(Visited):
    """The HTML: in `html` up to 256 KiB of UTF-8, else in `artifact`."""

    html: str | None = Field(description="null when it is longer than 256 KiB")
    artifact: Artifact | None = Field(description="the file content.html when `html` is null")


@job(browser=page_options, check=check_visit)
async def content(page: Page, ctx: Context, **options: Unpack[VisitOptions]) -> Content:
    """Answer the HTML of a page as it is after its scripts ran."""
    visited = await visit(page, options)
    html = storable(await page.content())
    data = html.encode()
    if len(data) <= INLINE_BYTES:
        return Content(**visited.model_dump(), html=html, artifact=None)
    artifact = await ctx.artifact("content.html", data, media_type="text/html; charset=utf-8")
    return Content(**visited.model_dump(), html=None, artifact=artifact)
