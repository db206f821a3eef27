"""Screenshots of a page, limited to the size that the browser can draw."""

from typing import Any, NotRequired, TypedDict, Unpack, cast

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import FloatRect, Page

from cplane.browser import read_json
from cplane.jobs.page_options import MAX_PIXELS
from cplane.tasks.visit import ElementMissing, TooLarge, VisitFailed

PAGE_SIZE = """() => {
  const root = document.documentElement
  return [Math.max(root.scrollWidth, innerWidth), Math.max(root.scrollHeight, innerHeight), devicePixelRatio]
}"""


class ImageOptions(TypedDict):
    """How the image is encoded; passed on to Playwright."""

    type: NotRequired[Any]
    quality: NotRequired[int | None]
    omit_background: NotRequired[bool]


async def capture(
    page: Page,
    *,
    full_page: bool = False,
    selector: str | None = None,
    clip: FloatRect | None = None,
    **image: Unpack[ImageOptions],
) -> bytes:
    """Take a screenshot of the viewport, the full page, an element or a rectangle.

    Args:
        page: the page, loaded.
        full_page: capture the whole scrollable page instead of the viewport.
        selector: capture the first element that this selector matches.
        clip: capture this rectangle, in CSS pixels.
        **image: type, quality and background of the image.

    Returns:
        The encoded image.

    Raises:
        ElementMissing: no element matches `selector`.
        TooLarge: the screenshot would have more than 100 million pixels.
        VisitFailed: the browser could not take the screenshot.
    """
    try:
        if selector is not None:
            element = page.locator(selector).first
            if not await element.count():
                raise ElementMissing(f"{page.url} has no element '{selector}'")
            box = await element.bounding_box()
            if box is not None:
                await _check_size(page, f"the element '{selector}' of {page.url}", box["width"], box["height"])
            return await element.screenshot(**image)
        if clip is not None:
            await _check_size(page, "the clip", clip["width"], clip["height"])
        elif full_page:
            await _check_size(page, page.url)
        return await page.screenshot(full_page=full_page, clip=clip, **image)
    except PlaywrightError as error:
        reason = error.message.partition("\n")[0]
        raise VisitFailed(f"the screenshot of {page.url} failed: {reason}") from error


async def _check_size(page: Page, subject: str, width: float | None = None, height: float | None = None) -> None:
    page_width, page_height, ratio = cast("tuple[float, float, float]", await read_json(page, PAGE_SIZE))
    width, height = width or page_width, height or page_height
    if width * height * ratio**2 > MAX_PIXELS:
        scale = f" at {ratio:g} device pixels per CSS pixel" if ratio != 1 else ""
        raise TooLarge(
            f"{subject} has {width:,.0f} × {height:,.0f} pixels{scale};"
            f" a screenshot can have {MAX_PIXELS:,}: choose a smaller clip"
        )
