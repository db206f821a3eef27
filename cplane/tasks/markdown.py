"""`markdown`: the text of a page as Markdown."""

from typing import Annotated, Unpack

from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.runtime.html_to_markdown import to_markdown
from cplane.runtime.offload import run_blocking
from cplane.tasks.content import DOCUMENT, MaxBytes, keep_text, read_html
from cplane.tasks.visit import RETRY, TooComplex, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

MAX_BYTES = 4 * 1024 * 1024
CONVERSION_TIMEOUT_S = 30.0
"""What the conversion of any page may take. A hostile one of 150 kB would take an hour."""

CONVERSION_S_PER_BYTE = 15 / 1024**2
"""What it may take in addition: four times as long as ordinary pages take."""

MAIN = """() => {
  const found = document.querySelector('main, [role=main]') ?? document.querySelector('article');
  if (found) return found.outerHTML;
  const body = document.body?.cloneNode(true);
  body?.querySelectorAll('nav, header, footer, aside').forEach((element) => element.remove());
  return body?.outerHTML ?? '';
}"""


class Markdown(VisitResult):
    """The text of the page: in `markdown` up to 256 KiB of UTF-8, above that in `artifact`."""

    markdown: str | None = Field(description="null if it is longer than 256 KiB")
    artifact: Artifact | None = Field(description="the file page.md if `markdown` is null")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def markdown(
    page: Page,
    ctx: Context,
    *,
    main_content: Annotated[
        bool,
        Field(description="convert only <main>, or else the first <article>, or else the body without navigation"),
    ] = False,
    max_bytes: MaxBytes = MAX_BYTES,
    **options: Unpack[VisitOptions],
) -> Markdown:
    """Return the text of a page as Markdown, after its scripts have run."""
    async with page_deadline(options):
        visited = await visit(page, options)
        html = await read_html(page, max_bytes, MAIN if main_content else DOCUMENT)
    text = await _convert(page.url, html)
    short, artifact = await keep_text(ctx, text, "page.md", "text/markdown")
    return Markdown(**visited.model_dump(), markdown=short, artifact=artifact)


async def _convert(url: str, html: str) -> str:
    timeout_s = CONVERSION_TIMEOUT_S + len(html) * CONVERSION_S_PER_BYTE
    try:
        converted = await run_blocking(to_markdown, html, timeout_s=timeout_s)
    except TimeoutError:
        raise TooComplex(f"{url} could not be converted within {timeout_s:.0f} s") from None
    return converted.strip() + "\n"
