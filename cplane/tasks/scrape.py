"""`scrape`: text, HTML, attributes and position of the elements that selectors find."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from cplane import job
from cplane.tasks.visit import (
    RETRY,
    Selector,
    SelectorInvalid,
    Visited,
    VisitOptions,
    check_visit,
    page_options,
    storable,
    strict,
    visit,
)

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


@strict
class Wanted(TypedDict):
    """Elements to look for, by CSS selector."""

    selector: Selector


class Box(BaseModel):
    """Where an element is on the page, in CSS pixels."""

    x: float
    y: float
    width: float
    height: float


class Element(BaseModel):
    """One element."""

    text: str = Field(description="as it is seen")
    html: str = Field(description="what is inside it")
    attributes: dict[str, str]
    box: Box


class Found(BaseModel):
    """What one selector found, in the page's order."""

    selector: str
    results: list[Element]


class Scraped(Visited):
    """What all selectors found."""

    elements: list[Found]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def scrape(
    page: Page,
    *,
    elements: Annotated[list[Wanted], Field(min_length=1, max_length=100)],
    limit: Annotated[int, Field(ge=1, le=10_000, description="elements for each selector at most")] = 1000,
    **options: Unpack[VisitOptions],
) -> Scraped:
    """Answer every element that the selectors find; a selector that finds none has no results."""
    visited = await visit(page, options)
    selectors = [wanted["selector"] for wanted in elements]
    found: list[dict[str, Any]] = await page.evaluate(SCRIPT, {"selectors": selectors, "limit": limit})
    if invalid := [answer["selector"] for answer in found if answer["invalid"]]:
        raise SelectorInvalid(f"not a CSS selector: {', '.join(invalid)}")
    return Scraped(**visited.model_dump(), elements=[_found(answer) for answer in found])


def _found(answer: dict[str, Any]) -> Found:
    return Found(selector=answer["selector"], results=[_element(result) for result in answer["results"]])


def _element(result: dict[str, Any]) -> Element:
    attributes = {storable(name): storable(value) for name, value in result["attributes"].items()}
    return Element(
        text=storable(result["text"]), html=storable(result["html"]), attributes=attributes, box=Box(**result["box"])
    )
