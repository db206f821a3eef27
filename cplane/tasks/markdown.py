"""`markdown`: the text of a page as Markdown."""

import asyncio
from typing import Annotated, Unpack

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter
from playwright.async_api import Page
from pydantic import Field

from cplane import Artifact, Context, job
from cplane.tasks.content import MaxBytes, keep_text, read_html
from cplane.tasks.visit import RETRY, Visited, VisitOptions, check_visit, page_options, storable, visit

MAX_BYTES = 4 * 1024 * 1024
UNREADABLE = ("script", "style", "noscript", "template", "head", "iframe")
MAIN = """() => {
  const found = document.querySelector('main, [role=main]') ?? document.querySelector('article');
  if (found) return found.outerHTML;
  const body = document.body?.cloneNode(true);
  body?.querySelectorAll('nav, header, footer, aside').forEach((element) => element.remove());
  return body?.outerHTML ?? '';
}"""


class Markdown(Visited):
    """The text: in `markdown` up to 256 KiB of UTF-8, else in `artifact`."""

    markdown: str | None = Field(description="null when it is longer than 256 KiB")
    artifact: Artifact | None = Field(description="the file page.md when `markdown` is null")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def markdown(
    page: Page,
    ctx: Context,
    *,
    main_content: Annotated[
        bool, Field(description="only <main> or the first <article>; else the body without navigation")
    ] = False,
    max_bytes: MaxBytes = MAX_BYTES,
    **options: Unpack[VisitOptions],
) -> Markdown:
    """Answer the text of a page, after its scripts ran, as Markdown."""
    visited = await visit(page, options)
    html = await read_html(page, max_bytes)
    if main_content:
        html = storable(await page.evaluate(MAIN))
    text = (await asyncio.to_thread(to_markdown, html)).strip() + "\n"
    short, artifact = await keep_text(ctx, text, "page.md", "text/markdown")
    return Markdown(**visited.model_dump(), markdown=short, artifact=artifact)


def to_markdown(html: str) -> str:
    """Convert; processor time, so not for the event loop."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(UNREADABLE):
        element.decompose()
    return MarkdownConverter(heading_style="ATX", bullets="-").convert_soup(soup)
