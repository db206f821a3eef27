"""Browser jobs that leave files: take a picture of each page, then save the pictures to a folder.

The job gets a fresh page from the worker's pool and keeps the picture with `ctx.artifact`. The program that submitted it
fetches the file by reference, on any machine that reaches the store. Run it in two terminals:

    $ cplane dev examples/screenshot_service.py
    $ python examples/screenshot_service.py https://example.com https://www.python.org
"""

import asyncio
import sys
from pathlib import Path
from typing import Literal

from playwright.async_api import Page
from pydantic import BaseModel, HttpUrl

from cplane import Artifact, Context, ControlPlane, Handle, JobFailed, job

FOLDER = Path("screenshots")


class Picture(BaseModel):
    """The page's title, and the reference of its picture."""

    title: str
    artifact: Artifact


@job(queue="browser", timeout=60, retries=2, browser={"viewport": {"width": 1280, "height": 800}})
async def capture(page: Page, ctx: Context, url: HttpUrl, *, kind: Literal["png", "jpeg"] = "png") -> Picture:
    """Open the page, wait until it is loaded, and keep a picture of its full length."""
    await page.goto(str(url))
    await ctx.progress(1, 2, "loaded")
    image = await page.screenshot(full_page=True, type=kind)
    artifact = await ctx.artifact(f"page.{kind}", image, media_type=f"image/{kind}")
    return Picture(title=await page.title(), artifact=artifact)


async def save(plane: ControlPlane, url: str, handle: Handle[Picture]) -> str:
    """Wait for one job and write its picture to `FOLDER`. Returns a line for people."""
    try:
        picture = await handle.result(timeout=120)
    except JobFailed as error:
        return f"{url}: {error.error_type}: {error.error_message}"
    async with plane.open_artifact(handle.id, picture.artifact.name) as (_, chunks):
        data = b"".join([chunk async for chunk in chunks])
    path = FOLDER / f"{handle.id}-{picture.artifact.name}"
    await asyncio.to_thread(write, path, data)
    return f"{url}: '{picture.title}', {len(data)} bytes in {path}"


def write(path: Path, data: bytes) -> None:
    """Write a file, and make its folder if it is missing. Files block, so this runs in a thread."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


async def main(urls: list[str]) -> None:
    """Submit all, then print one line for each as soon as it is done."""
    async with ControlPlane() as plane:
        handles = await capture.submit_many({"url": url} for url in urls)
        saving = [save(plane, url, handle) for url, handle in zip(urls, handles, strict=True)]
        for done in asyncio.as_completed(saving):
            print(await done)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: screenshot_service.py URL…")
    asyncio.run(main(sys.argv[1:]))
