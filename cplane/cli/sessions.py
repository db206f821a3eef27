"""`cplane sessions` and `cplane secret`: browser sessions, and the key they are encrypted with."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cplane.cli.console import console, notes
from cplane.cli.event_loop import run
from cplane.cli.jobs import AsJson, print_json
from cplane.cli.plane import open_plane

if TYPE_CHECKING:
    from cplane.sessions.store import Rotated, SessionInfo

PAGE = 500
"""Sessions that are asked for at once."""

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of a session, as `cplane sessions list` shows it.")]


def secret() -> None:
    """Print a new key for CPLANE_SECRET_KEY, which encrypts browser sessions.

    [cyan]$ cplane secret[/]
    """
    from cplane.keyring import new_key

    typer.echo(new_key())
    if sys.stdout.isatty():
        notes().print(
            "give it to web and workers as CPLANE_SECRET_KEY, and keep it where the database's backups do not lie",
            style="dim",
        )


@app.callback()
def sessions() -> None:
    """Browser sessions: logins that jobs take up again, kept encrypted.

    [cyan]$ cplane sessions list[/]
    """


@app.command("list")
def list_sessions(*, as_json: AsJson = False) -> None:
    """All sessions by name: size, times, who holds them. Never what is in them.

    [cyan]$ cplane sessions list[/]
    """

    async def ask() -> "list[SessionInfo]":
        found: list[SessionInfo] = []
        async with open_plane() as plane:
            while page := await plane.sessions.list(after=found[-1].name if found else "", limit=PAGE):
                found += page
        return found

    found = run(ask())
    if as_json:
        from cplane.web.views import session_view

        print_json([session_view(session).model_dump(mode="json") for session in found])
    elif found:
        from datetime import UTC, datetime

        from cplane.cli.report import sessions_table

        console().print(sessions_table(found, datetime.now(UTC)))
    else:
        notes().print("there are no sessions")


@app.command("import")
def import_session(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What `context.storage_state(path=…)` wrote; - reads standard input.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Its name; else the file's, without .json.")
    ] = None,
) -> None:
    """Import a session that Playwright saved, in the place of what was there.

    [cyan]$ cplane sessions import shop.json --name shop[/]
    """
    if name is None and file == "-":
        raise typer.BadParameter("a session from standard input needs a --name")
    named = Path(file).stem if name is None else name
    state = _read(file)

    async def ask() -> bool:
        async with open_plane() as plane:
            _, created = await plane.sessions.put(named, state)
            return created

    created = run(ask())
    notes().print(f"session '{named}' is {'imported' if created else 'replaced'}", markup=False)


@app.command()
def delete(name: Name) -> None:
    """Forget a session; one that a running job holds is left to it.

    [cyan]$ cplane sessions delete shop[/]
    """

    async def ask() -> None:
        async with open_plane() as plane:
            await plane.sessions.delete(name)

    run(ask())
    notes().print("forgotten")


@app.command()
def rotate() -> None:
    """Encrypt with the first key of CPLANE_SECRET_KEY what is encrypted with another; exits 1 if something could not be.

    [cyan]$ cplane sessions rotate[/]

    Jobs may run meanwhile. It can be stopped at any time, and be called again.
    """
    rotated = run(_show_rotation())
    failed = [each for each in rotated if each.problem is not None]
    stderr = notes()
    for each in failed:
        stderr.print(f"left as it is: {each.problem}", style="red", markup=False, soft_wrap=True)
    done = len(rotated) - len(failed)
    stderr.print(f"{done} encrypted anew" if rotated else "all are encrypted with the first key already")
    if failed:
        raise typer.Exit(1)


async def _show_rotation() -> "list[Rotated]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("encrypting anew"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rotated: list[Rotated] = []
    async with open_plane() as plane:
        first = plane.sessions.keyring.first
        count = sum(number for key_id, number in (await plane.sessions.keys()).items() if key_id != first)
        with Progress(*columns, console=notes(), transient=True) as progress:
            line = progress.add_task("", total=count)
            async for each in plane.sessions.rotate():
                rotated.append(each)
                progress.advance(line)
    return rotated


def _read(file: str) -> dict[str, Any]:
    """The state in a file. Its content never gets into a message."""
    import json

    from cplane.errors import InvalidSession

    where = "standard input" if file == "-" else f"'{file}'"
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidSession(f"{where} cannot be read: {error.strerror}") from None
    try:
        state: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError):  # told without what is in it
        hint = "save one with `await context.storage_state(path=…)`"
        raise InvalidSession(f"{where} is not JSON", hint=hint) from None
    return state
