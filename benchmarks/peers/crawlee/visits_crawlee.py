"""crawlee's BrowserPool with a fresh context per page (`use_incognito_pages`) and without fingerprints.

Its browsers live as long as those of cplane.
"""

import argparse
import asyncio
import os
import time

from crawlee.browsers import BrowserPool, PlaywrightBrowserPlugin

from benchmarks.pages.visits import measure, parse


async def main(arguments: argparse.Namespace) -> None:
    plugin = PlaywrightBrowserPlugin(
        use_incognito_pages=True,
        browser_launch_options={
            "executable_path": arguments.executable,
            "chromium_sandbox": os.geteuid() != 0,
            "headless": True,
        },
    )
    async with BrowserPool([plugin], retire_browser_after_page_count=500) as pool:

        async def visit(url: str) -> float:
            began = time.perf_counter()
            crawlee_page = await pool.new_page()
            acquire_s = time.perf_counter() - began
            await crawlee_page.page.goto(url)
            assert await crawlee_page.page.title() == "Bench"
            await crawlee_page.page.close()  # its context closes with it
            return acquire_s

        await measure(visit, arguments)


if __name__ == "__main__":
    asyncio.run(main(parse()))
