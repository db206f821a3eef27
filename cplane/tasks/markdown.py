"""`markdown`: the text of a page as Markdown."""

import asyncio
from typing import Annotated, Unpack

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter
from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.content import DOCUMENT, MaxBytes, keep_text, read_html
from cplane.tasks.visit import RETRY, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

MAX_BYTES = 4 * 1024 * 1024
IGNORED_ELEMENTS = ("script", "style", "noscript", "template", "head", "iframe")
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
    text = (await asyncio.to_thread(to_markdown, html)).strip() + "\n"
    short, artifact = await keep_text(ctx, text, "page.md", "text/markdown")
    return Markdown(**visited.model_dump(), markdown=short, artifact=artifact)


def to_markdown(html: str) -> str:
    """Convert HTML to Markdown. It is CPU-bound: call it in a thread, not on the event loop."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(IGNORED_ELEMENTS):
        element.decompose()
    return MarkdownConverter(heading_style="ATX", bullets="-").convert_soup(soup)
