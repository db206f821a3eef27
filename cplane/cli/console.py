"""Where the command line prints: results to stdout, everything else to stderr."""

import sys
from typing import TYPE_CHECKING, TextIO

from cplane.errors import CplaneError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 240
"""Columns where nobody looks: no line is folded or cut."""


def console() -> "Console":
    """For what was asked for; it may be piped into another program."""
    from rich.console import Console

    return Console(highlight=False, width=_width(sys.stdout))


def notes() -> "Console":
    """For people: progress, hints, errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=_width(sys.stderr))


def print_error(error: CplaneError) -> None:
    """The sentence in red, the hint below it."""
    from rich.text import Text

    stderr = notes()
    stderr.print(Text.assemble(("error: ", "bold red"), (error.message, "red")), soft_wrap=True)
    if error.hint:
        stderr.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else PIPED_WIDTH
