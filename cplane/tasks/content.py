"""`content`: the HTML of a page, after its scripts have run."""

from typing import Annotated, Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.browser import TextRefused, read_text
from cplane.tasks.visit import RETRY, TooLarge, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

INLINE_BYTES = 256 * 1024
"""UTF-8 bytes of text that a result holds itself; a longer text becomes an artifact."""

MAX_BYTES = 16 * 1024 * 1024
DOCUMENT = """() => {
  const doctype = document.doctype ? new XMLSerializer().serializeToString(document.doctype) : '';
  return doctype + (document.documentElement?.outerHTML ?? '');
}"""


class Content(VisitResult):
    """The HTML of the page: in `html` up to 256 KiB of UTF-8, above that in `artifact`."""

    html: str | None = Field(description="null if it is longer than 256 KiB")
    artifact: Artifact | None = Field(description="the file content.html if `html` is null")


MaxBytes = Annotated[
    int, Field(ge=1, le=64 * 1024 * 1024, description="maximum size of the HTML in bytes; a larger page fails the job")
]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def content(
    page: Page, ctx: Context, *, max_bytes: MaxBytes = MAX_BYTES, **options: Unpack[VisitOptions]
) -> Content:
    """Return the HTML of a page after its scripts have run."""
    async with page_deadline(options):
        visited = await visit(page, options)
        html = await read_html(page, max_bytes)
    text, artifact = await keep_text(ctx, html, "content.html", "text/html")
    return Content(**visited.model_dump(), html=text, artifact=artifact)


async def read_html(page: Page, max_bytes: int, script: str = DOCUMENT) -> str:
    """Return the current HTML of the page. Its size is checked before it is transferred from the browser.

    Args:
        page: the page, loaded.
        max_bytes: maximum size as UTF-8, bytes.
        script: a JavaScript function that returns the HTML; by default that of the whole document.

    Returns:
        The HTML as text that JSON can store.

    Raises:
        TooLarge: the HTML is longer than `max_bytes`.
    """
    try:
        return await read_text(page, script, max_bytes=max_bytes)
    except TextRefused as error:
        size = f"{error.found['bytes']:,} or more"
        raise TooLarge(f"{page.url} has more than {max_bytes:,} bytes of HTML: {size} (see max_bytes)") from None


async def keep_text(ctx: Context, text: str, name: str, media_type: str) -> tuple[str | None, Artifact | None]:
    """Return a short text as it is, and store a long one as an artifact.

    Args:
        ctx: context of the job, which stores the artifact.
        text: the text; up to `INLINE_BYTES` of UTF-8 count as short.
        name: name of the artifact.
        media_type: media type of the artifact, without charset.

    Returns:
        The text and None, or None and the artifact.
    """
    data = text.encode()
    if len(data) <= INLINE_BYTES:
        return text, None
    return None, await ctx.artifact(name, data, media_type=f"{media_type}; charset=utf-8")
