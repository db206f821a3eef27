"""`scrape`: text, HTML, attributes and position of the elements that selectors match."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from cplane import job
from cplane.browser import TextRefused, read_text
from cplane.tasks.visit import RETRY, SelectorInvalid, TooLarge, VisitFailed, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import Selector, VisitOptions, check_visit, page_options, strict

MAX_JSON_BYTES = 768 * 1024
"""Default of `max_bytes` for jobs whose result is on the record: below CPLANE_MAX_RESULT_BYTES."""

MaxJsonBytes = Annotated[
    int,
    Field(ge=1, le=4 * 1024 * 1024, description="maximum size of what is read, bytes of JSON; more fails the job"),
]
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


@strict
class ElementQuery(TypedDict):
    """Elements to find, by CSS selector."""

    selector: Selector


class Box(BaseModel):
    """Position and size of an element on the page, in CSS pixels."""

    x: float
    y: float
    width: float
    height: float


class Element(BaseModel):
    """One element that a selector matches."""

    text: str = Field(description="visible text")
    html: str = Field(description="inner HTML")
    attributes: dict[str, str]
    box: Box


class ElementMatches(BaseModel):
    """The elements that one selector matches, in document order."""

    selector: str
    results: list[Element]


MATCHES = TypeAdapter(list[ElementMatches])


class ScrapeResult(VisitResult):
    """The matches of all selectors, in the order of the arguments."""

    elements: list[ElementMatches]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def scrape(
    page: Page,
    *,
    elements: Annotated[list[ElementQuery], Field(min_length=1, max_length=100)],
    limit: Annotated[int, Field(ge=1, le=10_000, description="maximum number of elements per selector")] = 1000,
    max_bytes: MaxJsonBytes = MAX_JSON_BYTES,
    **options: Unpack[VisitOptions],
) -> ScrapeResult:
    """Return the elements that the selectors match. A selector without a match has an empty list of results."""
    selectors = [query["selector"] for query in elements]
    try:
        async with page_deadline(options):
            visited = await visit(page, options)
            found = await read_text(page, SCRIPT, {"selectors": selectors, "limit": limit}, max_bytes=max_bytes)
    except TextRefused as error:
        raise _refused(error.found, max_bytes) from None
    return ScrapeResult(**visited.model_dump(), elements=MATCHES.validate_json(found))


def _refused(found: dict[str, Any], max_bytes: int) -> VisitFailed:
    if "invalid" in found:
        return SelectorInvalid(f"not a CSS selector: {', '.join(found['invalid'])}")
    return TooLarge(
        f"the elements up to those of '{found['selector']}' have more than {max_bytes:,} bytes: {found['bytes']:,} or more;"
        " narrow the selector, lower limit, or raise max_bytes"
    )
