"""Output of the command line: results to stdout, everything else to stderr.

Pages, callers and jobs decide a part of what is printed. Whatever prints uses `console`, `notes` or `styled`, which take
text from elsewhere as text.
"""

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, TextIO

from cplane.errors import CplaneError
from cplane.runtime.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPED_WIDTH = 240
"""Columns of a stream that is not a terminal: wide enough that no line is folded or cut."""


def console() -> "Console":
    """Return the console for results, which may be piped into another program."""
    from cplane.cli.terminal import Terminal

    return Terminal(width=_width(sys.stdout))


def notes() -> "Console":
    """Return the console for people: progress, hints, errors."""
    from cplane.cli.terminal import Terminal

    return Terminal(stderr=True, width=_width(sys.stderr))


def styled(template: str, *values: object) -> "Text":
    """Return text with our markup, and with values from elsewhere that are printed literally.

    Args:
        template: text with markup, and `{}` for each value: `[green]saved[/] {}`.
        values: what takes their places.
    """
    from rich.markup import escape
    from rich.text import Text

    return Text.from_markup(template.format(*(escape(visible(str(value))) for value in values)), emoji=False)


def print_error(error: CplaneError) -> None:
    """Print the sentence in red, and the hint below it."""
    from rich.text import Text

    stderr = notes()
    stderr.print(Text.assemble(("error: ", "bold red"), (error.message, "red")), soft_wrap=True)
    if error.hint:
        stderr.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)


def typed() -> str:
    """Return how to type this command: `cplane`, or its path if it is not on PATH, such as `.venv/bin/cplane`."""
    program = Path(sys.argv[0])
    found = which("cplane")
    if program.name != "cplane" or (found and Path(found).resolve() == program.resolve()):
        return "cplane"
    here = Path.cwd()
    return str(program.relative_to(here) if program.is_relative_to(here) else program)


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else PIPED_WIDTH
