"""The conversion of HTML to Markdown. It is CPU-bound, and runs in a process of the worker."""

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter

IGNORED_ELEMENTS = ("script", "style", "noscript", "template", "head", "iframe")


def to_markdown(html: str) -> str:
    """Convert HTML to Markdown. It blocks, for as long as the page likes: call it with `run_blocking`."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(IGNORED_ELEMENTS):
        element.decompose()
    return MarkdownConverter(heading_style="ATX", bullets="-").convert_soup(soup)
