"""`screenshot`: an image of the viewport, the full page, one element or a rectangle."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

from playwright.async_api import Page
from pydantic import Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.tasks.capture import capture
from cplane.tasks.visit import RETRY, VisitResult, page_deadline, visit
from cplane.tasks.visit_options import Selector, VisitOptions, check_visit, page_options, strict


@strict
class Clip(TypedDict):
    """A rectangle in CSS pixels."""

    x: Annotated[float, Field(ge=0)]
    y: Annotated[float, Field(ge=0)]
    width: Annotated[float, Field(gt=0, le=16384)]
    height: Annotated[float, Field(gt=0, le=16384)]


class Screenshot(VisitResult):
    """The image."""

    artifact: Artifact


def check_screenshot(arguments: Mapping[str, Any]) -> None:
    """Reject combinations of arguments that Playwright does not accept, at submission."""
    check_visit(arguments)
    if arguments["quality"] is not None and arguments["type"] != "jpeg":
        raise ValueError('quality is for type "jpeg" only')
    if arguments["omit_background"] and arguments["type"] == "jpeg":
        raise ValueError('omit_background is for type "png" only')
    if sum([arguments["full_page"], arguments["selector"] is not None, arguments["clip"] is not None]) > 1:
        raise ValueError("give only one of full_page, selector and clip")


@job(browser=page_options, retries=RETRY, per_host={}, check=check_screenshot)
async def screenshot(
    page: Page,
    ctx: Context,
    *,
    full_page: bool = False,
    selector: Selector | None = None,
    clip: Clip | None = None,
    type: Literal["png", "jpeg"] = "png",  # noqa: A002  the name that Playwright uses
    quality: Annotated[int, Field(ge=0, le=100)] | None = None,
    omit_background: bool = False,
    **options: Unpack[VisitOptions],
) -> Screenshot:
    """Take a screenshot of the viewport, the full page, the first element of `selector`, or the rectangle `clip`."""
    async with page_deadline(options):
        visited = await visit(page, options)
        await ctx.progress(1, 2, "loaded")
        image = await capture(
            page,
            full_page=full_page,
            selector=selector,
            clip=clip,
            type=type,
            quality=quality,
            omit_background=omit_background,
        )
    artifact = await ctx.artifact(f"screenshot.{type}", image, media_type=f"image/{type}")
    return Screenshot(**visited.model_dump(), artifact=artifact)
