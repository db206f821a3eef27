"""Pages that are ready before anyone asks for them: which to open, and which to hand out. Decides only; the pool opens and closes."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from cplane.browser.lease import PageLease
from cplane.jobs.page_options import PageOptions

REMEMBERED = 16
"""The last so many pages that were asked for decide which are kept ready."""

OFTEN = 2
"""So often must equal options be among them: options that come once, such as somebody's credentials, are not prepared for."""


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A page that is ready, or on its way."""

    key: str
    opening: "asyncio.Task[PageLease]"

    @property
    def open(self) -> bool:
        """Whether it can be handed out at once."""
        return self.opening.done() and not self.spoiled

    @property
    def spoiled(self) -> bool:
        """Whether it did not open, or was lost since."""
        if not self.opening.done():
            return False
        return self.opening.cancelled() or self.opening.exception() is not None or self.opening.result().lost


class WarmPages:
    """At most `size` pages, of the options that are asked for most."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ready: list[Ready] = []
        self._asked: deque[str] = deque(maxlen=REMEMBERED)
        self._options: dict[str, PageOptions] = {}

    def __iter__(self) -> Iterator[Ready]:
        return iter([*self._ready])

    @property
    def open(self) -> int:
        """Pages that can be handed out at once."""
        return sum(ready.open for ready in self._ready)

    def expect(self, options: PageOptions) -> None:
        """Pages with these options will be asked for."""
        for _ in range(OFTEN):
            self.ask(options)

    def ask(self, options: PageOptions) -> None:
        """Remember that a page with these options was asked for."""
        key = options.key
        self._asked.append(key)
        self._options[key] = options
        for forgotten in self._options.keys() - set(self._asked):
            del self._options[forgotten]

    def forget(self, key: str) -> None:
        """Prepare no pages with these options any more: the browser refuses them."""
        self._asked = deque((asked for asked in self._asked if asked != key), maxlen=REMEMBERED)
        self._options.pop(key, None)

    def take(self, key: str) -> Ready | None:
        """A page with these options, one that is open if there is one; it leaves the stock."""
        fitting = [ready for ready in self._ready if ready.key == key and not ready.spoiled]
        best = next((ready for ready in fitting if ready.open), None) or next(iter(fitting), None)
        if best is not None:
            self._ready.remove(best)
        return best

    def put(self, ready: Ready) -> None:
        """Keep a page that is ready, or on its way."""
        self._ready.append(ready)

    def remove(self, ready: Ready) -> None:
        """Take one out, whatever its state."""
        self._ready.remove(ready)

    def missing(self) -> list[PageOptions]:
        """The options of the pages to open now."""
        had = Counter(ready.key for ready in self._ready)
        return [self._options[key] for key, number in (self._plan() - had).items() for _ in range(number)]

    def surplus(self) -> list[Ready]:
        """What is spoiled, or not wanted any more; it leaves the stock."""
        room = self._plan()
        leaving: list[Ready] = []
        for ready in self:
            if ready.spoiled or not room[ready.key]:
                self._ready.remove(ready)
                leaving.append(ready)
            else:
                room[ready.key] -= 1
        return leaving

    def clear(self) -> list[Ready]:
        """Everything leaves the stock."""
        leaving, self._ready = self._ready, []
        return leaving

    def _plan(self) -> Counter[str]:
        """How many pages of each options: in proportion to how often they were asked for (D'Hondt's method)."""
        often = Counter({key: count for key, count in Counter(self._asked).items() if count >= OFTEN})
        plan: Counter[str] = Counter()
        for _ in range(self.size if often else 0):
            plan[max(often, key=lambda key: often[key] / (plan[key] + 1))] += 1
        return plan
