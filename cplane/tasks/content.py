"""`content`: the HTML of a page, after its scripts ran."""

from typing import Annotated, Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.visit import RETRY, TooLarge, Visited, VisitOptions, check_visit, page_options, storable, visit

INLINE_BYTES = 256 * 1024
MAX_BYTES = 16 * 1024 * 1024


class Content(Visited):
    """The HTML: in `html` up to 256 KiB of UTF-8, else in `artifact`."""

    html: str | None = Field(description="null when it is longer than 256 KiB")
    artifact: Artifact | None = Field(description="the file content.html when `html` is null")


MaxBytes = Annotated[int, Field(ge=1, le=64 * 1024 * 1024, description="a page with more HTML fails")]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def content(
    page: Page, ctx: Context, *, max_bytes: MaxBytes = MAX_BYTES, **options: Unpack[VisitOptions]
) -> Content:
    """Answer the HTML of a page as it is after its scripts ran."""
    visited = await visit(page, options)
    html = await read_html(page, max_bytes)
    text, artifact = await keep_text(ctx, html, "content.html", "text/html")
    return Content(**visited.model_dump(), html=text, artifact=artifact)


async def read_html(page: Page, max_bytes: int) -> str:
    """The HTML of the page as it is now; it is measured before it leaves the browser.

    Raises:
        TooLarge: it is longer than `max_bytes`.
    """
    length: int = await page.evaluate("document.documentElement?.outerHTML.length ?? 0")
    html = storable(await page.content()) if length <= max_bytes else ""
    if length > max_bytes or len(html.encode()) > max_bytes:
        raise TooLarge(f"{page.url} has more than {max_bytes:,} bytes of HTML (see max_bytes)")
    return html


async def keep_text(ctx: Context, text: str, name: str, media_type: str) -> tuple[str | None, Artifact | None]:
    """A short text as it is, a long one as an artifact."""
    data = text.encode()
    if len(data) <= INLINE_BYTES:
        return text, None
    return None, await ctx.artifact(name, data, media_type=f"{media_type}; charset=utf-8")
