"""`steps`: a visit in which things are done, one after the other: clicked, filled in, waited for, read."""

import asyncio
from typing import Annotated, Literal, NotRequired, Unpack

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Locator, Page
from pydantic import Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.tasks.visit import (
    RETRY,
    Milliseconds,
    Selector,
    Visited,
    VisitFailed,
    VisitOptions,
    check_visit,
    page_options,
    storable,
    strict,
    visit,
)

TIMEOUT_MS = 10_000.0
MOST_EXTRACTED = 1000
READ = """(elements, [what, attribute, most]) => elements.slice(0, most).map((element) =>
  what === 'html' ? element.innerHTML : what === 'attribute' ? element.getAttribute(attribute) : element.innerText)"""


@strict
class Act(TypedDict):
    """Do something with an element, once it is ready for it."""

    action: Literal["click", "hover", "check", "uncheck", "wait", "scroll"]
    selector: Selector
    timeout: NotRequired[Milliseconds]


@strict
class Enter(TypedDict):
    """Fill a field, select an option by value or label, or press a key such as Enter."""

    action: Literal["fill", "select", "press"]
    selector: Selector
    value: str
    timeout: NotRequired[Milliseconds]


@strict
class Extract(TypedDict):
    """Read an element, or with `all` every element (1000 at most), into `extracted` under `name`."""

    action: Literal["extract"]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    selector: Selector
    what: NotRequired[Literal["text", "html"]]
    attribute: NotRequired[Annotated[str, Field(description="read this attribute, instead of `what`")]]
    all: NotRequired[bool]
    timeout: NotRequired[Milliseconds]


@strict
class Picture(TypedDict):
    """Take a picture of the viewport or of an element; it is the artifact `name`.png."""

    action: Literal["screenshot"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    selector: NotRequired[Selector]
    timeout: NotRequired[Milliseconds]


Step = Annotated[Act | Enter | Extract | Picture, Field(discriminator="action")]


class StepFailed(VisitFailed):
    """A step could not be done; the message names its number, its action and what was there."""


class Stepped(Visited):
    """The page after the last step, and what the steps read and took."""

    extracted: dict[str, list[str | None]] = Field(description="by the name of the step")
    artifacts: list[Artifact]


@job(browser=page_options, retries=RETRY, per_host={}, check=check_visit)
async def steps(
    page: Page,
    ctx: Context,
    *,
    steps: Annotated[list[Step], Field(min_length=1, max_length=200)],
    **options: Unpack[VisitOptions],
) -> Stepped:
    """Open a page and do the steps in order. Each has 10 s unless its `timeout` (milliseconds) says otherwise."""
    visited = await visit(page, options)
    stepped = Stepped(**visited.model_dump(), extracted={}, artifacts=[])
    for number, step in enumerate(steps, 1):
        await ctx.progress(number - 1, len(steps), step["action"])
        timeout_ms = step.get("timeout", TIMEOUT_MS)
        page.set_default_timeout(timeout_ms)
        try:
            async with asyncio.timeout(timeout_ms / 1000 + 1):  # what has no timeout of its own
                await _do(page, ctx, step, stepped)
        except (PlaywrightError, TimeoutError) as error:
            raise await _failed(page, number, step, error) from error
    title = storable(await page.title())
    return stepped.model_copy(update={"final_url": storable(page.url), "title": title})


async def _do(page: Page, ctx: Context, step: Act | Enter | Extract | Picture, stepped: Stepped) -> None:
    if step["action"] == "extract":
        stepped.extracted[step["name"]] = await _read(page, step)
    elif step["action"] == "screenshot":
        image = await (page.locator(step["selector"]).first if "selector" in step else page).screenshot()
        stepped.artifacts.append(await ctx.artifact(f"{step['name']}.png", image, media_type="image/png"))
    elif step["action"] == "fill" or step["action"] == "select" or step["action"] == "press":
        await _enter(page.locator(step["selector"]).first, step)
    else:
        await _act(page.locator(step["selector"]).first, step["action"])


async def _act(element: Locator, action: str) -> None:
    match action:
        case "click":
            await element.click()
        case "hover":
            await element.hover()
        case "check":
            await element.check()
        case "uncheck":
            await element.uncheck()
        case "wait":
            await element.wait_for()
        case "scroll":
            await element.scroll_into_view_if_needed()
        case _:
            raise ValueError(f"there is no action '{action}'")


async def _enter(element: Locator, step: Enter) -> None:
    match step["action"]:
        case "fill":
            await element.fill(step["value"])
        case "select":
            await element.select_option(step["value"])
        case "press":
            await element.press(step["value"])


async def _read(page: Page, step: Extract) -> list[str | None]:
    found = page.locator(step["selector"])
    await found.first.wait_for(state="attached")
    what = "attribute" if "attribute" in step else step.get("what", "text")
    most = MOST_EXTRACTED if step.get("all") else 1
    values: list[str | None] = await found.evaluate_all(READ, [what, step.get("attribute"), most])
    return [storable(value) if value is not None else None for value in values]


async def _failed(
    page: Page, number: int, step: Act | Enter | Extract | Picture, error: PlaywrightError | TimeoutError
) -> StepFailed:
    """The step by number, action and selector, and how many such elements there are. Never the value: it may be secret."""
    selector = step.get("selector", "")
    try:
        async with asyncio.timeout(2):
            there = f"{await page.locator(selector).count() if selector else 0} such elements"
    except (PlaywrightError, TimeoutError):
        there = "it is not a selector, or the page does not answer"
    kind = "not done in time" if "imeout" in type(error).__name__ else "refused by the page"
    return StepFailed(f"step {number} ({step['action']} '{selector}') was {kind}; on {storable(page.url)}: {there}")
