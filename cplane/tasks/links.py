"""`links`: the links of a page."""

from pathlib import Path
from typing import Annotated, Unpack

from playwright.async_api import Page
from pydantic import BaseModel, Field, TypeAdapter

from cplane import job
from cplane.browser import TextRefused, read_text
from cplane.tasks.scrape import MAX_JSON_BYTES, MaxJsonBytes
from cplane.tasks.visit import RETRY, TooLarge, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class Link(BaseModel):
    """A link. Each address is listed once."""

    href: str = Field(description="absolute URL")
    text: str = Field(description="visible text, taken from the first link to this address that has a text")
    external: bool = Field(description="whether it leads to another host")


LINKS = TypeAdapter(list[Link])


class Links(VisitResult):
    """The http(s) links of a page, in document order."""

    links: list[Link]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def links(
    page: Page,
    *,
    visible_links_only: Annotated[bool, Field(description="omit links that are not visible")] = False,
    exclude_external_links: Annotated[bool, Field(description="omit links to other hosts")] = False,
    max_bytes: MaxJsonBytes = MAX_JSON_BYTES,
    **options: Unpack[VisitOptions],
) -> Links:
    """Return the http(s) links of a page."""
    wanted = {"visibleOnly": visible_links_only, "excludeExternal": exclude_external_links}
    try:
        async with page_deadline(options):
            visited = await visit(page, options)
            found = await read_text(page, SCRIPT, wanted, max_bytes=max_bytes)
    except TextRefused as error:
        size = f"{error.found['bytes']:,} or more"
        raise TooLarge(
            f"the links of {page.url} have more than {max_bytes:,} bytes: {size};"
            " exclude external or invisible links, or raise max_bytes"
        ) from None
    return Links(**visited.model_dump(), links=LINKS.validate_json(found))
