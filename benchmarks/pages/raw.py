"""Plain Playwright: a browser per visit, a context per visit, or reused pages.

`python -m benchmarks.pages.raw WAY …`.
"""

import argparse
import asyncio
import os
import time

from playwright.async_api import Browser, Page, Playwright, async_playwright

from benchmarks.pages.visits import Visit, measure, parse


async def open_page(page: Page, url: str) -> None:
    """Open the page and read its title, as every visit does."""
    await page.goto(url)
    assert await page.title() == "Bench"


async def launch(playwright: Playwright, executable: str) -> Browser:
    """Launch the same browser as the pool."""
    return await playwright.chromium.launch(executable_path=executable, chromium_sandbox=os.geteuid() != 0)


def browser_per_visit(playwright: Playwright, executable: str) -> Visit:
    """Return a visit that launches and closes a browser."""

    async def visit(url: str) -> float:
        began = time.perf_counter()
        browser = await launch(playwright, executable)
        page = await browser.new_page()
        acquire_s = time.perf_counter() - began
        await open_page(page, url)
        await browser.close()
        return acquire_s

    return visit


def context_per_visit(browser: Browser) -> Visit:
    """Return a visit with the isolation of a pool: its own context."""

    async def visit(url: str) -> float:
        began = time.perf_counter()
        context = await browser.new_context()
        page = await context.new_page()
        acquire_s = time.perf_counter() - began
        await open_page(page, url)
        await context.close()
        return acquire_s

    return visit


async def pages_reused(browser: Browser, number: int) -> Visit:
    """Return a visit without isolation, on `number` reused pages of one context."""
    context = await browser.new_context()
    pages = [await context.new_page() for _ in range(number)]

    async def visit(url: str) -> float:
        page = pages.pop()
        await open_page(page, url)
        pages.append(page)
        return 0.0

    return visit


async def main(arguments: argparse.Namespace) -> None:
    """Measure one way."""
    async with async_playwright() as playwright:
        if arguments.way == "browser":
            await measure(browser_per_visit(playwright, arguments.executable), arguments)
            return
        browser = await launch(playwright, arguments.executable)
        if arguments.way == "context":
            await measure(context_per_visit(browser), arguments)
        else:
            await measure(await pages_reused(browser, arguments.concurrency), arguments)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(parse()))
