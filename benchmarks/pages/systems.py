"""The ways that are compared, and the program of each."""

import sys
from dataclasses import dataclass

from benchmarks.suite import environments


@dataclass(frozen=True, slots=True)
class Way:
    """One way to obtain pages."""

    name: str
    command: tuple[str, ...]
    isolated: bool = True
    """Whether a visit leaves no state for the next one."""
    slow: bool = False
    """Whether it gets fewer visits, because each takes long."""


HERE = sys.executable
FRESH = Way("cplane, fresh context", (HERE, "-m", "benchmarks.pages.ours", "fresh"))
SHARED = Way("cplane, shared", (HERE, "-m", "benchmarks.pages.ours", "shared"), isolated=False)
RAW_CONTEXT = Way("Playwright, context a visit", (HERE, "-m", "benchmarks.pages.raw", "context"))
RAW_BROWSER = Way("Playwright, browser a visit", (HERE, "-m", "benchmarks.pages.raw", "browser"), slow=True)
RAW_REUSE = Way("Playwright, page reused", (HERE, "-m", "benchmarks.pages.raw", "reuse"), isolated=False)
CRAWLEE = Way(
    "crawlee, incognito pages", (environments.python("crawlee"), "benchmarks/peers/crawlee/visits_crawlee.py", "fresh")
)
WAYS = (FRESH, RAW_CONTEXT, CRAWLEE, RAW_BROWSER, SHARED, RAW_REUSE)
