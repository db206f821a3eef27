"""`links`: where a page leads."""

from pathlib import Path
from typing import Annotated, Any, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field

from cplane import job
from cplane.tasks.visit import RETRY, Visited, VisitOptions, check_visit, page_options, storable, visit

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class Link(BaseModel):
    """A link, once for each address."""

    href: str = Field(description="absolute")
    text: str = Field(description="as it is seen; of the first link to this address that has any")
    external: bool = Field(description="whether it leads to another host")


class Links(Visited):
    """The http(s) links of a page, in its order."""

    links: list[Link]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def links(
    page: Page,
    *,
    visible_links_only: Annotated[bool, Field(description="leave out links that cannot be seen")] = False,
    exclude_external_links: Annotated[bool, Field(description="leave out links to other hosts")] = False,
    **options: Unpack[VisitOptions],
) -> Links:
    """Answer where a page leads."""
    visited = await visit(page, options)
    found: list[dict[str, Any]] = await page.evaluate(SCRIPT, {"visibleOnly": visible_links_only})
    kept = [link for link in found if not (exclude_external_links and link["external"])]
    return Links(
        **visited.model_dump(),
        links=[
            Link(href=storable(link["href"]), text=storable(link["text"]), external=link["external"]) for link in kept
        ],
    )
