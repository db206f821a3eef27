"""`pdf`: a page printed as PDF."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page
from pydantic import Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.tasks.visit import RETRY, VisitFailed, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import VisitOptions, check_visit, page_options, strict

Length = Annotated[
    str, Field(pattern=r"^\d+(\.\d+)?(px|in|cm|mm)$", description="a length with its unit: px, in, cm or mm")
]
Format = Literal["letter", "legal", "tabloid", "ledger", "a0", "a1", "a2", "a3", "a4", "a5", "a6"]
PageRanges = Annotated[str, Field(pattern=r"^\d+(-\d*)?(, *\d+(-\d*)?)*$", description="for example 1-5, 8, 11-13")]


@strict
class Margin(TypedDict, total=False):
    """Margins of the paper. The default is no margin."""

    top: Length
    right: Length
    bottom: Length
    left: Length


class Pdf(VisitResult):
    """The printed document."""

    artifact: Artifact


def check_pdf(arguments: Mapping[str, Any]) -> None:
    """Reject arguments that cannot be printed, at submission."""
    check_visit(arguments)
    if (arguments["width"] is None) != (arguments["height"] is None):
        raise ValueError("width and height must be given together")
    if arguments["format"] is not None and arguments["width"] is not None:
        raise ValueError("give either format or width and height")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_pdf)
async def pdf(
    page: Page,
    ctx: Context,
    *,
    format: Format | None = None,  # noqa: A002  the name that Playwright uses
    width: Length | None = None,
    height: Length | None = None,
    margin: Margin | None = None,
    landscape: bool = False,
    scale: Annotated[float, Field(ge=0.1, le=2)] = 1,
    print_background: bool = False,
    page_ranges: PageRanges | None = None,
    header_template: str | None = None,
    footer_template: str | None = None,
    prefer_css_page_size: bool = False,
    outline: bool = False,
    tagged: bool = False,
    **options: Unpack[VisitOptions],
) -> Pdf:
    """Print a page as PDF. The default paper format is letter.

    The header and footer templates are HTML with the classes `date`, `title`, `url`, `pageNumber` and `totalPages`.
    They are visible only if there is a margin.
    """
    async with page_deadline(options):
        visited = await visit(page, options)
        await ctx.progress(1, 2, "loaded")
        try:
            document = await page.pdf(
                format=format,
                width=width,
                height=height,
                margin={**margin} if margin is not None else None,
                landscape=landscape,
                scale=scale,
                print_background=print_background,
                page_ranges=page_ranges,
                display_header_footer=header_template is not None or footer_template is not None,
                header_template=header_template if header_template is not None else "<span></span>",
                footer_template=footer_template if footer_template is not None else "<span></span>",
                prefer_css_page_size=prefer_css_page_size,
                outline=outline,
                tagged=tagged,
            )
        except PlaywrightError as error:
            reason = error.message.partition("\n")[0]
            raise VisitFailed(f"{visited.final_url} cannot be printed: {reason}") from error
    artifact = await ctx.artifact("page.pdf", document, media_type="application/pdf")
    return Pdf(**visited.model_dump(), artifact=artifact)
