"""The console of the command line. Text from elsewhere can neither style what is printed nor act on the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cplane.runtime.visible import ACTING, visible


class Terminal(Console):
    """A console that reads no markup, and shows escapes for what would act on the terminal.

    Markup of our own is in `Text.from_markup`; `console.styled` puts values into it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything: text, tables, progress. Everything that is printed goes through here."""
        for segment in super().render(renderable, options):
            if segment.control or not ACTING.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
