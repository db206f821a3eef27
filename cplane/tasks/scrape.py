"""`scrape`: text, HTML, attributes and position of the elements that selectors match."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from cplane import job
from cplane.tasks.visit import RETRY, SelectorInvalid, VisitResult, storable, visit
from cplane.tasks.visit_options import Selector, VisitOptions, check_visit, page_options, strict

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


class ScrapeResult(VisitResult):
    """The matches of all selectors, in the order of the arguments."""

    elements: list[ElementMatches]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def scrape(
    page: Page,
    *,
    elements: Annotated[list[ElementQuery], Field(min_length=1, max_length=100)],
    limit: Annotated[int, Field(ge=1, le=10_000, description="maximum number of elements per selector")] = 1000,
    **options: Unpack[VisitOptions],
) -> ScrapeResult:
    """Return the elements that the selectors match. A selector without a match has an empty list of results."""
    visited = await visit(page, options)
    selectors = [query["selector"] for query in elements]
    found: list[dict[str, Any]] = await page.evaluate(SCRIPT, {"selectors": selectors, "limit": limit})
    if invalid := [match["selector"] for match in found if match["invalid"]]:
        raise SelectorInvalid(f"not a CSS selector: {', '.join(invalid)}")
    return ScrapeResult(**visited.model_dump(), elements=[_matches(match) for match in found])


def _matches(match: dict[str, Any]) -> ElementMatches:
    return ElementMatches(selector=match["selector"], results=[_element(result) for result in match["results"]])


def _element(result: dict[str, Any]) -> Element:
    attributes = {storable(name): storable(value) for name, value in result["attributes"].items()}
    return Element(
        text=storable(result["text"]), html=storable(result["html"]), attributes=attributes, box=Box(**result["box"])
    )
