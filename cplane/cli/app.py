"""The commands, and the exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted with Ctrl-C."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cplane.cli.browser import app as browser
from cplane.cli.console import print_error
from cplane.cli.db import app as db
from cplane.cli.dead_letters import app as dead_letters
from cplane.cli.demo import demo
from cplane.cli.dev import dev
from cplane.cli.doctor import doctor
from cplane.cli.jobs import app as jobs
from cplane.cli.queues import app as queues
from cplane.cli.sessions import app as sessions
from cplane.cli.sessions import secret
from cplane.cli.submit import submit
from cplane.cli.web import web
from cplane.cli.worker import worker
from cplane.errors import CplaneError

EXAMPLES = (
    "cplane demo",
    "cplane dev app.py",
    "cplane submit screenshot url=https://example.com --save .",
    "cplane jobs list --state failed",
    "cplane jobs retry --state failed --job screenshot",
    "cplane queues",
    "cplane dead-letters",
    "cplane sessions import shop.json",
    "cplane secret",
    "cplane worker --imports myapp.jobs --queues default:10,browser:4",
    "cplane web --port 8000",
    "cplane db upgrade",
    "cplane browser install",
    "cplane doctor",
)


class Commands(TyperGroup):
    """The commands. Removes pydantic's prefix from the messages of usage errors."""

    def invoke(self, ctx: Any) -> Any:  # the type of typer's contexts is private
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="cplane",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\n".join(f"[cyan]$ {example}[/]" for example in EXAMPLES)
    + "\n\nSettings are CPLANE_* variables. While [cyan]cplane dev[/] runs in a folder, programs in it need none.",
)
app.command("demo")(demo)
app.command("dev")(dev)
app.command("submit")(submit)
app.add_typer(jobs, name="jobs")
app.add_typer(queues, name="queues")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(sessions, name="sessions")
app.command("secret")(secret)
app.command("worker")(worker)
app.command("web")(web)
app.add_typer(db, name="db")
app.add_typer(browser, name="browser")
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        from cplane import __version__

        typer.echo(f"cplane {__version__}")
        raise typer.Exit


@app.callback()
def cplane(
    *,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Browser jobs and other async jobs: recorded in Postgres, scheduled on Redis, run by workers."""


def main() -> None:
    """Run the command line. A CplaneError is printed as one sentence on stderr, never as a traceback."""
    try:
        app()
    except CplaneError as error:
        print_error(error)
        sys.exit(1)
