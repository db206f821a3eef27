"""`steps`: a visit in which things are done, one after the other: clicked, filled in, waited for, read."""

import asyncio
import mimetypes
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, Unpack, cast
from uuid import UUID

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import FilePayload, Locator, Page, expect
from pydantic import Field
from typing_extensions import TypedDict

from cplane import Artifact, Context, job
from cplane.errors import UsageError
from cplane.tasks.download import MAX_BYTES, keep_download
from cplane.tasks.visit import (
    RETRY,
    Milliseconds,
    Pattern,
    Selector,
    Url,
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
LARGEST_UPLOAD = 20 * 1024 * 1024
MOST_EXTRACTED = 1000
READ = """(elements, [what, attribute, most]) => elements.slice(0, most).map((element) =>
  what === 'html' ? element.innerHTML : what === 'attribute' ? element.getAttribute(attribute) : element.innerText)"""


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")]


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


@strict
class Go(TypedDict):
    """Open another page in the same window."""

    action: Literal["goto"]
    url: Url
    timeout: NotRequired[Milliseconds]


@strict
class WaitFor(TypedDict):
    """Wait for one thing: an address that matches a regular expression, a state of loading, or some milliseconds."""

    action: Literal["wait_for"]
    url: NotRequired[Pattern]
    load_state: NotRequired[Literal["load", "domcontentloaded", "networkidle"]]
    milliseconds: NotRequired[Milliseconds]
    timeout: NotRequired[Milliseconds]


@strict
class Assert(TypedDict):
    """Fail unless an element is there and, as far as given, is visible or hidden, contains a text, or is there so often."""

    action: Literal["assert"]
    selector: Selector
    visible: NotRequired[bool]
    text: NotRequired[str]
    count: NotRequired[Annotated[int, Field(ge=0)]]
    timeout: NotRequired[Milliseconds]


@strict
class Inline(TypedDict):
    """A file as base64, or as text."""

    name: FileName
    base64: NotRequired[Annotated[str, Field(max_length=2 * 1024 * 1024)]]
    text: NotRequired[Annotated[str, Field(max_length=1024 * 1024)]]


@strict
class Reference(TypedDict):
    """An artifact of another job."""

    job: Annotated[UUID, Field(description="its id")]
    name: FileName


@strict
class Upload(TypedDict):
    """Put files into a file field; each 20 MiB at most."""

    action: Literal["upload"]
    selector: Selector
    files: Annotated[list[Inline | Reference], Field(min_length=1, max_length=10)]
    timeout: NotRequired[Milliseconds]


@strict
class Fetch(TypedDict):
    """Click an element that starts a download; the file is the artifact `name`, or has the server's name."""

    action: Literal["download"]
    selector: Selector
    name: NotRequired[FileName]
    timeout: NotRequired[Milliseconds]


AnyStep = Act | Enter | Extract | Picture | Go | WaitFor | Assert | Upload | Fetch
Step = Annotated[AnyStep, Field(discriminator="action")]


class StepFailed(VisitFailed):
    """A step could not be done; the message names its number, its action and what was there."""


class Stepped(Visited):
    """The page after the last step, and what the steps read and took."""

    extracted: dict[str, list[str | None]] = Field(description="by the name of the step")
    artifacts: list[Artifact]


def check_steps(arguments: Mapping[str, Any]) -> None:
    """Refuse at submit what cannot be done."""
    check_visit(arguments)
    for number, step in enumerate(arguments["steps"], 1):
        if step["action"] == "wait_for" and len(step.keys() & {"url", "load_state", "milliseconds"}) != 1:
            raise ValueError(f"step {number}: wait_for takes one of url, load_state and milliseconds")
        for file in step.get("files", ()):
            if "job" not in file and len(file.keys() & {"base64", "text"}) != 1:
                raise ValueError(f"step {number}: the file '{file['name']}' takes either base64 or text")


def steps_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """The options of the page, which may download if a step does."""
    downloads = any(step["action"] == "download" for step in arguments["steps"])
    return {**page_options(arguments), "accept_downloads": downloads}


@job(browser=steps_options, retries=RETRY, per_host={}, check=check_steps)
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
        except (PlaywrightError, TimeoutError, AssertionError, UsageError) as error:
            raise await _failed(page, number, step, error) from error
    title = storable(await page.title())
    return stepped.model_copy(update={"final_url": storable(page.url), "title": title})


async def _do(page: Page, ctx: Context, step: AnyStep, stepped: Stepped) -> None:
    match step["action"]:
        case "extract":
            stepped.extracted[step["name"]] = await _read(page, step)
        case "screenshot":
            image = await (page.locator(step["selector"]).first if "selector" in step else page).screenshot()
            stepped.artifacts.append(await ctx.artifact(f"{step['name']}.png", image, media_type="image/png"))
        case "download":
            stepped.artifacts.append(await _download(page, ctx, step))
        case "upload":
            files = [await _file(ctx, file) for file in step["files"]]
            await page.locator(step["selector"]).first.set_input_files(files)
        case "goto":
            await page.goto(step["url"])
        case "wait_for":
            await _wait(page, step)
        case "assert":
            await _assert(page, step)
        case "fill" | "select" | "press":
            await _enter(page.locator(step["selector"]).first, step)
        case action:
            await _act(page.locator(step["selector"]).first, action)


async def _wait(page: Page, step: WaitFor) -> None:
    if "url" in step:
        await page.wait_for_url(re.compile(step["url"]))
    elif "load_state" in step:
        await page.wait_for_load_state(step["load_state"])
    else:
        await page.wait_for_timeout(step.get("milliseconds", 0))


async def _assert(page: Page, step: Assert) -> None:
    """Playwright's own assertions look again until they hold, or the step's time is over."""
    found, timeout_ms = page.locator(step["selector"]), step.get("timeout", TIMEOUT_MS)
    if "count" in step:
        await expect(found).to_have_count(step["count"], timeout=timeout_ms)
    elif step.get("visible", True):
        await expect(found.first).to_be_visible(timeout=timeout_ms)
    else:
        await expect(found.first).to_be_hidden(timeout=timeout_ms)
    if "text" in step:
        await expect(found.first).to_contain_text(step["text"], timeout=timeout_ms)


async def _file(ctx: Context, file: Inline | Reference) -> FilePayload:
    if "job" in file:
        reference = cast("Reference", cast("object", file))
        artifact, data = await ctx.read_artifact(reference["job"], reference["name"], max_bytes=LARGEST_UPLOAD)
        return {"name": artifact.name, "mimeType": artifact.media_type, "buffer": data}
    data = b64decode(file["base64"]) if "base64" in file else file.get("text", "").encode()
    media_type = mimetypes.guess_type(file["name"])[0] or "application/octet-stream"
    return {"name": file["name"], "mimeType": media_type, "buffer": data}


async def _download(page: Page, ctx: Context, step: Fetch) -> Artifact:
    async with page.expect_download() as started:
        await page.locator(step["selector"]).first.click()
    return (await keep_download(ctx, await started.value, MAX_BYTES, step.get("name"))).artifact


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


async def _failed(page: Page, number: int, step: AnyStep, error: Exception) -> StepFailed:
    """The step by number, action and selector, and how many such elements there are. Never the value: it may be secret."""
    selector = str(step.get("selector", ""))
    try:
        async with asyncio.timeout(2):
            there = f"{await page.locator(selector).count() if selector else 0} such elements"
    except (PlaywrightError, TimeoutError):
        there = "it is not a selector, or the page does not answer"
    kind = "not done in time" if "imeout" in type(error).__name__ else "refused by the page"
    if isinstance(error, AssertionError):
        kind = "not so"
    elif isinstance(error, UsageError):
        kind = f"not possible: {error}"
    return StepFailed(f"step {number} ({step['action']} '{selector}') was {kind}; on {storable(page.url)}: {there}")
