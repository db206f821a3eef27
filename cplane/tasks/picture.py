"""Pictures of what a page shows, no larger than a browser draws them."""

from typing import Any, NotRequired, TypedDict, Unpack, cast

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import FloatRect, Page

from cplane.tasks.visit import ElementMissing, TooLarge, VisitFailed

MOST_PIXELS = 100_000_000
"""Of more than about 110 million pixels Chromium leaves the rest white, and says nothing (measured)."""

PAGE_SIZE = """() => {
  const root = document.documentElement
  return [Math.max(root.scrollWidth, innerWidth), Math.max(root.scrollHeight, innerHeight), devicePixelRatio]
}"""


class How(TypedDict):
    """How a picture is written."""

    type: NotRequired[Any]
    quality: NotRequired[int | None]
    omit_background: NotRequired[bool]


async def take_picture(
    page: Page,
    *,
    full_page: bool = False,
    selector: str | None = None,
    clip: FloatRect | None = None,
    **how: Unpack[How],
) -> bytes:
    """A picture of the viewport, the full page, the first element of `selector`, or a rectangle.

    Raises:
        ElementMissing: there is no such element.
        TooLarge: it would have more than 100 million pixels.
        VisitFailed: the browser draws none.
    """
    try:
        if selector is not None:
            element = page.locator(selector).first
            if not await element.count():
                raise ElementMissing(f"{page.url} has no element '{selector}'")
            box = await element.bounding_box()
            if box is not None:
                await _check_size(page, f"the element '{selector}' of {page.url}", box["width"], box["height"])
            return await element.screenshot(**how)
        if clip is not None:
            await _check_size(page, "the clip", clip["width"], clip["height"])
        elif full_page:
            await _check_size(page, page.url)
        return await page.screenshot(full_page=full_page, clip=clip, **how)
    except PlaywrightError as error:
        raise VisitFailed(f"no picture of {page.url}: {error.message.partition(chr(10))[0]}") from error


async def _check_size(page: Page, what: str, width: float | None = None, height: float | None = None) -> None:
    whole_width, whole_height, ratio = cast("tuple[float, float, float]", await page.evaluate(PAGE_SIZE))
    width, height = width or whole_width, height or whole_height
    if width * height * ratio**2 > MOST_PIXELS:
        scaled = f", {ratio:g} times as large" if ratio != 1 else ""
        raise TooLarge(
            f"{what} has {width:,.0f} × {height:,.0f} pixels{scaled}, and a picture at most {MOST_PIXELS:,}: take a smaller clip"
        )
