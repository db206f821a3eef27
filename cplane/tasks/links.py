"""`links`: the links of a page."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field

from cplane import job
from cplane.tasks.visit import RETRY, VisitResult, storable, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class Link(BaseModel):
    """A link. Each address is listed once."""

    href: str = Field(description="absolute URL")
    text: str = Field(description="visible text, taken from the first link to this address that has a text")
    external: bool = Field(description="whether it leads to another host")


class Links(VisitResult):
    """The http(s) links of a page, in document order."""

    links: list[Link]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def links(
    page: Page,
    *,
    visible_links_only: Annotated[bool, Field(description="omit links that are not visible")] = False,
    exclude_external_links: Annotated[bool, Field(description="omit links to other hosts")] = False,
    **options: Unpack[VisitOptions],
) -> Links:
    """Return the http(s) links of a page."""
    visited = await visit(page, options)
    found: list[dict[str, Any]] = await page.evaluate(SCRIPT, {"visibleOnly": visible_links_only})
    kept = [link for link in found if not (exclude_external_links and link["external"])]
    return Links(
        **visited.model_dump(),
        links=[
            Link(href=storable(link["href"]), text=storable(link["text"]), external=link["external"]) for link in kept
        ],
    )
