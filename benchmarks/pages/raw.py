"""Playwright itself: a browser a visit, a context a visit, or one page over and over. `python -m benchmarks.pages.raw WAY …`."""

import argparse
import asyncio
import os
import time

from playwright.async_api import Browser, Page, Playwright, async_playwright

from benchmarks.pages.visits import Visit, measure, parse


async def look(page: Page, url: str) -> None:
    """What every visit does."""
    await page.goto(url)
    assert await page.title() == "Bench"


async def launch(playwright: Playwright, executable: str) -> Browser:
    """The same browser as the pool's."""
    return await playwright.chromium.launch(executable_path=executable, chromium_sandbox=os.geteuid() != 0)


def browser_per_visit(playwright: Playwright, executable: str) -> Visit:
    """Launch, visit, close."""

    async def visit(url: str) -> float:
        began = time.perf_counter()
        browser = await launch(playwright, executable)
        page = await browser.new_page()
        acquire_s = time.perf_counter() - began
        await look(page, url)
        await browser.close()
        return acquire_s

    return visit


def context_per_visit(browser: Browser) -> Visit:
    """The isolation that a pool gives, by hand."""

    async def visit(url: str) -> float:
        began = time.perf_counter()
        context = await browser.new_context()
        page = await context.new_page()
        acquire_s = time.perf_counter() - began
        await look(page, url)
        await context.close()
        return acquire_s

    return visit


async def pages_reused(browser: Browser, number: int) -> Visit:
    """No isolation: as many pages of one context as there are visits at once."""
    context = await browser.new_context()
    pages = [await context.new_page() for _ in range(number)]

    async def visit(url: str) -> float:
        page = pages.pop()
        await look(page, url)
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
