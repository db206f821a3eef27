"""`steps`: a visit followed by actions in order, such as click, fill, wait and extract."""

import asyncio
import mimetypes
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
from cplane.tasks.patterns import UrlPattern
from cplane.tasks.visit import RETRY, TooLarge, VisitFailed, VisitResult, page_deadline, read_title, storable, visit
from cplane.tasks.visit_options import (
    Milliseconds,
    Pattern,
    Selector,
    Url,
    VisitOptions,
    check_visit,
    page_options,
    strict,
)

DEFAULT_TIMEOUT_MS = 10_000.0
MAX_UPLOAD_BYTES = 20 * 1024 * 1024
"""Size of one artifact that an `upload` step reads."""

MAX_EXTRACTED = 1000
"""Elements that one `extract` step with `all` reads."""

MAX_EXTRACTED_BYTES = 768 * 1024
"""UTF-8 bytes that all `extract` steps of a job read; they go on the record."""

READ = """(elements, [what, attribute, limit, maxBytes]) => {
  const encoder = new TextEncoder();
  const values = [];
  let bytes = 0;
  for (const element of elements.slice(0, limit)) {
    const value = what === 'html' ? element.innerHTML
      : what === 'attribute' ? element.getAttribute(attribute) : element.innerText;
    const length = value?.length ?? 0;
    bytes += length > maxBytes ? length : encoder.encode(value ?? '').length;
    if (bytes > maxBytes) return bytes;
    values.push(value);
  }
  return values;
}"""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")]


@strict
class ElementStep(TypedDict):
    """Perform an action on an element once it is ready for it."""

    action: Literal["click", "hover", "check", "uncheck", "wait", "scroll"]
    selector: Selector
    timeout: NotRequired[Milliseconds]


@strict
class InputStep(TypedDict):
    """Fill a field, select an option by value or label, or press a key such as Enter."""

    action: Literal["fill", "select", "press"]
    selector: Selector
    value: str
    timeout: NotRequired[Milliseconds]


@strict
class ExtractStep(TypedDict):
    """Read an element, or with `all` up to 1000 elements, into `extracted` under `name`."""

    action: Literal["extract"]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    selector: Selector
    what: NotRequired[Literal["text", "html"]]
    attribute: NotRequired[Annotated[str, Field(description="name of an attribute to read, instead of `what`")]]
    all: NotRequired[bool]
    timeout: NotRequired[Milliseconds]


@strict
class ScreenshotStep(TypedDict):
    """Take a screenshot of the viewport or of an element and store it as the artifact `name`.png."""

    action: Literal["screenshot"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    selector: NotRequired[Selector]
    timeout: NotRequired[Milliseconds]


@strict
class GotoStep(TypedDict):
    """Navigate to another URL in the same page."""

    action: Literal["goto"]
    url: Url
    timeout: NotRequired[Milliseconds]


@strict
class WaitForStep(TypedDict):
    """Wait for exactly one of: a URL that matches a regular expression (RE2), a load state, a number of milliseconds."""

    action: Literal["wait_for"]
    url: NotRequired[Pattern]
    load_state: NotRequired[Literal["load", "domcontentloaded", "networkidle"]]
    milliseconds: NotRequired[Milliseconds]
    timeout: NotRequired[Milliseconds]


@strict
class AssertStep(TypedDict):
    """Fail unless an element is visible (the default) or hidden, contains a text, or occurs `count` times."""

    action: Literal["assert"]
    selector: Selector
    visible: NotRequired[bool]
    text: NotRequired[str]
    count: NotRequired[Annotated[int, Field(ge=0)]]
    timeout: NotRequired[Milliseconds]


@strict
class InlineFile(TypedDict):
    """A file given as base64 or as text."""

    name: FileName
    base64: NotRequired[Annotated[str, Field(max_length=2 * 1024 * 1024)]]
    text: NotRequired[Annotated[str, Field(max_length=1024 * 1024)]]


@strict
class ArtifactReference(TypedDict):
    """An artifact of another job."""

    job: Annotated[UUID, Field(description="id of the job that stored the artifact")]
    name: FileName


@strict
class UploadStep(TypedDict):
    """Set the files of a file input. Each may have up to 20 MiB."""

    action: Literal["upload"]
    selector: Selector
    files: Annotated[list[InlineFile | ArtifactReference], Field(min_length=1, max_length=10)]
    timeout: NotRequired[Milliseconds]


@strict
class DownloadStep(TypedDict):
    """Click an element that starts a download. The file becomes the artifact `name`, by default the server's name."""

    action: Literal["download"]
    selector: Selector
    name: NotRequired[FileName]
    timeout: NotRequired[Milliseconds]


AnyStep = (
    ElementStep
    | InputStep
    | ExtractStep
    | ScreenshotStep
    | GotoStep
    | WaitForStep
    | AssertStep
    | UploadStep
    | DownloadStep
)
Step = Annotated[AnyStep, Field(discriminator="action")]


class StepFailed(VisitFailed):
    """A step failed. The message names its number, action and selector, and how many elements match."""


class StepsResult(VisitResult):
    """The page after the last step, and what the steps extracted and stored."""

    extracted: dict[str, list[str | None]] = Field(description="extracted values by the `name` of the step")
    artifacts: list[Artifact]


def check_steps(arguments: Mapping[str, Any]) -> None:
    """Reject steps that cannot be performed, at submission."""
    check_visit(arguments)
    for number, step in enumerate(arguments["steps"], 1):
        if step["action"] == "wait_for" and len(step.keys() & {"url", "load_state", "milliseconds"}) != 1:
            raise ValueError(f"step {number}: wait_for takes exactly one of url, load_state and milliseconds")
        for file in step.get("files", ()):
            if "job" not in file and len(file.keys() & {"base64", "text"}) != 1:
                raise ValueError(f"step {number}: the file '{file['name']}' takes either base64 or text")


def steps_options(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return the options of the page, which accepts downloads only if a step downloads."""
    downloads = any(step["action"] == "download" for step in arguments["steps"])
    return {**page_options(arguments), "accept_downloads": downloads}


@job(browser=steps_options, retries=RETRY, per_host={}, check=check_steps)
async def steps(
    page: Page,
    ctx: Context,
    *,
    steps: Annotated[list[Step], Field(min_length=1, max_length=200)],
    **options: Unpack[VisitOptions],
) -> StepsResult:
    """Open a page and perform the steps in order.

    Each has a timeout of 10 s unless it sets `timeout` (milliseconds).
    """
    async with page_deadline(options):
        visited = await visit(page, options)
    result = StepsResult(**visited.model_dump(), extracted={}, artifacts=[])
    for number, step in enumerate(steps, 1):
        await ctx.progress(number - 1, len(steps), step["action"])
        timeout_ms = step.get("timeout", DEFAULT_TIMEOUT_MS)
        page.set_default_timeout(timeout_ms)
        try:
            async with asyncio.timeout(timeout_ms / 1000 + 1):  # for the calls that have no timeout
                await _perform(page, ctx, step, result)
        except (PlaywrightError, TimeoutError, AssertionError, UsageError) as error:
            raise await _failure(page, number, step, error) from error
    async with page_deadline(options):
        title = await read_title(page)
    return result.model_copy(update={"final_url": storable(page.url), "title": title})


async def _perform(page: Page, ctx: Context, step: AnyStep, result: StepsResult) -> None:
    match step["action"]:
        case "extract":
            read = sum(len((value or "").encode()) for values in result.extracted.values() for value in values)
            result.extracted[step["name"]] = await _read(page, step, MAX_EXTRACTED_BYTES - read)
        case "screenshot":
            image = await (page.locator(step["selector"]).first if "selector" in step else page).screenshot()
            result.artifacts.append(await ctx.artifact(f"{step['name']}.png", image, media_type="image/png"))
        case "download":
            result.artifacts.append(await _download(page, ctx, step))
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
            await _input(page.locator(step["selector"]).first, step)
        case action:
            await _act(page.locator(step["selector"]).first, action)


async def _wait(page: Page, step: WaitForStep) -> None:
    if "url" in step:
        await page.wait_for_url(UrlPattern(step["url"]).matches)  # Playwright would match a pattern with `re`
    elif "load_state" in step:
        await page.wait_for_load_state(step["load_state"])
    else:
        await page.wait_for_timeout(step.get("milliseconds", 0))


async def _assert(page: Page, step: AssertStep) -> None:
    """Playwright's assertions poll until they hold or the step's timeout expires."""
    found, timeout_ms = page.locator(step["selector"]), step.get("timeout", DEFAULT_TIMEOUT_MS)
    if "count" in step:
        await expect(found).to_have_count(step["count"], timeout=timeout_ms)
    elif step.get("visible", True):
        await expect(found.first).to_be_visible(timeout=timeout_ms)
    else:
        await expect(found.first).to_be_hidden(timeout=timeout_ms)
    if "text" in step:
        await expect(found.first).to_contain_text(step["text"], timeout=timeout_ms)


async def _file(ctx: Context, file: InlineFile | ArtifactReference) -> FilePayload:
    if "job" in file:
        reference = cast("ArtifactReference", cast("object", file))
        artifact, data = await ctx.read_artifact(reference["job"], reference["name"], max_bytes=MAX_UPLOAD_BYTES)
        return {"name": artifact.name, "mimeType": artifact.media_type, "buffer": data}
    data = b64decode(file["base64"]) if "base64" in file else file.get("text", "").encode()
    media_type = mimetypes.guess_type(file["name"])[0] or "application/octet-stream"
    return {"name": file["name"], "mimeType": media_type, "buffer": data}


async def _download(page: Page, ctx: Context, step: DownloadStep) -> Artifact:
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


async def _input(element: Locator, step: InputStep) -> None:
    match step["action"]:
        case "fill":
            await element.fill(step["value"])
        case "select":
            await element.select_option(step["value"])
        case "press":
            await element.press(step["value"])


async def _read(page: Page, step: ExtractStep, max_bytes: int) -> list[str | None]:
    found = page.locator(step["selector"])
    await found.first.wait_for(state="attached")
    what = "attribute" if "attribute" in step else step.get("what", "text")
    limit = MAX_EXTRACTED if step.get("all") else 1
    values: list[str | None] | int = await found.evaluate_all(READ, [what, step.get("attribute"), limit, max_bytes])
    if isinstance(values, int):
        raise TooLarge(
            f"the elements of the step extract '{step['selector']}' have {values:,} bytes or more, and the extract steps"
            f" of a job read up to {MAX_EXTRACTED_BYTES:,}: narrow the selector, or read text instead of html"
        )
    return [storable(value) if value is not None else None for value in values]


async def _failure(page: Page, number: int, step: AnyStep, error: Exception) -> StepFailed:
    """Describe a failed step by number, action, selector and number of matches. Never by value: it may be secret."""
    selector = str(step.get("selector", ""))
    try:
        async with asyncio.timeout(2):
            matches = f"{await page.locator(selector).count() if selector else 0} matching elements"
    except (PlaywrightError, TimeoutError):
        matches = "the selector is invalid or the page does not respond"
    if isinstance(error, AssertionError):
        outcome = "did not hold"
    elif isinstance(error, UsageError):
        outcome = f"is not possible: {error}"
    elif "imeout" in type(error).__name__:
        outcome = "timed out"
    else:
        outcome = "was rejected by the page"
    return StepFailed(f"step {number} ({step['action']} '{selector}') {outcome}; on {storable(page.url)}: {matches}")
