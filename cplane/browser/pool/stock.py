"""Warm pages: which ones to open, and which one to lease. It decides only; `warmer` opens and closes them."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from cplane.browser.lease import PageLease
from cplane.jobs.page_options import PageOptions

REQUEST_WINDOW = 16
"""The last 16 requests decide which options have warm pages."""

MIN_REQUESTS = 2
"""How often options must be among them. Options that come once get no warm page."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmPage:
    """A page that is open, or still opening, and not leased yet."""

    key: str
    """The key of its options."""
    opening: "asyncio.Task[PageLease]"

    @property
    def ready(self) -> bool:
        """Whether it can be leased without waiting."""
        return self.opening.done() and not self.broken

    @property
    def broken(self) -> bool:
        """Whether it failed to open, or was lost since."""
        if not self.opening.done():
            return False
        return self.opening.cancelled() or self.opening.exception() is not None or self.opening.result().lost


class WarmPages:
    """Up to `size` warm pages, of the options that are requested most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages: list[WarmPage] = []
        self._requests: deque[str] = deque(maxlen=REQUEST_WINDOW)
        self._options: dict[str, PageOptions] = {}

    def __iter__(self) -> Iterator[WarmPage]:
        return iter([*self._pages])

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def ready(self) -> int:
        """Pages that can be leased without waiting."""
        return sum(page.ready for page in self._pages)

    def expect(self, options: PageOptions) -> None:
        """Treat options as if they had been requested often enough to get warm pages."""
        for _ in range(MIN_REQUESTS):
            self.record_request(options)

    def record_request(self, options: PageOptions) -> None:
        """Record that a page with these options was requested. Those with credentials get no warm page."""
        if options.has_credentials:
            return
        key = options.key
        self._requests.append(key)
        self._options[key] = options
        for expired in self._options.keys() - set(self._requests):
            del self._options[expired]

    def forget(self, key: str) -> None:
        """Open no more warm pages with these options, which the browser refuses."""
        self._requests = deque((request for request in self._requests if request != key), maxlen=REQUEST_WINDOW)
        self._options.pop(key, None)

    def take(self, key: str) -> WarmPage | None:
        """Remove and return a page with these options, preferably one that is ready; None if there is none."""
        candidates = [page for page in self._pages if page.key == key and not page.broken]
        best = next((page for page in candidates if page.ready), None) or next(iter(candidates), None)
        if best is not None:
            self._pages.remove(best)
        return best

    def add(self, page: WarmPage) -> None:
        """Add a page that is open or opening."""
        self._pages.append(page)

    def remove(self, page: WarmPage) -> None:
        """Remove a page, whatever its state."""
        self._pages.remove(page)

    def missing(self) -> list[PageOptions]:
        """The options of the pages to open now, one item a page."""
        present = Counter(page.key for page in self._pages)
        return [self._options[key] for key, number in (self._plan() - present).items() for _ in range(number)]

    def surplus(self) -> list[WarmPage]:
        """Remove and return the pages that are broken or no longer needed."""
        wanted = self._plan()
        removed: list[WarmPage] = []
        for page in self:
            if page.broken or not wanted[page.key]:
                self._pages.remove(page)
                removed.append(page)
            else:
                wanted[page.key] -= 1
        return removed

    def clear(self) -> list[WarmPage]:
        """Remove and return all pages."""
        removed, self._pages = self._pages, []
        return removed

    def _plan(self) -> Counter[str]:
        """How many pages each options should have: in proportion to their requests (D'Hondt's method)."""
        frequent = Counter({key: count for key, count in Counter(self._requests).items() if count >= MIN_REQUESTS})
        plan: Counter[str] = Counter()
        for _ in range(self.size if frequent else 0):
            plan[max(frequent, key=lambda key: frequent[key] / (plan[key] + 1))] += 1
        return plan
