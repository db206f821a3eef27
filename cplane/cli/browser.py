"""`cplane browser`: the browser that jobs use."""

import typer

from cplane.cli.console import notes, styled
from cplane.cli.event_loop import run
from cplane.errors import BrowserError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def browser() -> None:
    """The browser that jobs use.

    [cyan]$ cplane browser install[/]
    """


@app.command()
def install() -> None:
    """Install a browser: Playwright's download, else the system's package.

    [cyan]$ cplane browser install[/]

    An existing browser that works is kept.
    """
    run(_install())


async def _install() -> None:
    from rich.text import Text

    from cplane.browser import BrowserSource, find_executable, probe
    from cplane.browser import install as install_browser

    stderr = notes()
    try:
        found = find_executable()
        await probe(BrowserSource(executable=found.path))
    except BrowserError as error:
        stderr.print(Text(error.message, "dim"), soft_wrap=True)
        found = await install_browser(lambda line: stderr.print(Text(line, "dim"), soft_wrap=True))
    stderr.print(styled("[green]ready:[/] {}", found.path), soft_wrap=True)
