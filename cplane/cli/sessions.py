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
    from cplane.sessions.store import RotationResult, SessionInfo

PAGE_SIZE = 500
"""Number of sessions read per statement."""

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a session, as `cplane sessions list` shows it.")]


def secret() -> None:
    """Print a new key for CPLANE_SECRET_KEY, which encrypts browser sessions.

    [cyan]$ cplane secret[/]
    """
    from cplane.keyring import new_key

    typer.echo(new_key())
    if sys.stdout.isatty():
        notes().print(
            "set it as CPLANE_SECRET_KEY for web and workers, and store it apart from the backups of the database",
            style="dim",
        )


@app.callback()
def sessions() -> None:
    """Browser sessions: logins that jobs reuse, stored encrypted.

    [cyan]$ cplane sessions list[/]
    """


@app.command("list")
def list_sessions(*, as_json: AsJson = False) -> None:
    """List all sessions by name: size, times and holder, never their state.

    [cyan]$ cplane sessions list[/]
    """

    async def request() -> "list[SessionInfo]":
        found: list[SessionInfo] = []
        async with open_plane() as plane:
            while page := await plane.sessions.list(after=found[-1].name if found else "", limit=PAGE_SIZE):
                found += page
        return found

    found = run(request())
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
        str,
        typer.Argument(
            metavar="FILE", help="A file that `context.storage_state(path=…)` wrote; - reads standard input."
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", metavar="NAME", help="Name of the session; default: the file's name without its extension."
        ),
    ] = None,
) -> None:
    """Import a session that Playwright saved; an existing one of that name is replaced.

    [cyan]$ cplane sessions import shop.json --name shop[/]
    """
    if name is None and file == "-":
        raise typer.BadParameter("a session from standard input needs a --name")
    named = Path(file).stem if name is None else name
    state = _read(file)

    async def request() -> bool:
        async with open_plane() as plane:
            _, created = await plane.sessions.put(named, state)
            return created

    created = run(request())
    notes().print(f"session '{named}' is {'imported' if created else 'replaced'}")


@app.command()
def allow(
    name: Name,
    *,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST", help="A further host: example.com, *.example.com for its subdomains, or *."
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="OPTION",
            help="An option that sessions refuse: add_script_tag, html, ignore_https_errors or proxy.",
        ),
    ] = None,
) -> None:
    """Set what a session allows, beyond the hosts that it was saved for. Nothing given: nothing more.

    [cyan]$ cplane sessions allow shop --host login.example.com --option proxy[/]

    A client that may submit jobs can read a session that allows add_script_tag, or proxy with ignore_https_errors.
    """

    async def request() -> "SessionInfo":
        async with open_plane() as plane:
            return await plane.sessions.allow(name, hosts=hosts or (), options=options or ())

    session = run(request())
    allowed = ", ".join([*session.allowed_hosts, *session.allowed_options])
    notes().print(f"session '{name}' allows {allowed or 'nothing more'}", markup=False)


@app.command()
def delete(name: Name) -> None:
    """Delete a session. One that a running job holds cannot be deleted.

    [cyan]$ cplane sessions delete shop[/]
    """

    async def request() -> None:
        async with open_plane() as plane:
            await plane.sessions.delete(name)

    run(request())
    notes().print("deleted")


@app.command()
def rotate() -> None:
    """Encrypt all sessions with the first key of CPLANE_SECRET_KEY.

    [cyan]$ cplane sessions rotate[/]

    Exits with status 1 if a session could not be encrypted again. Jobs may run concurrently. It can be stopped at any
    time, and be called again.
    """
    rotated = run(_show_rotation())
    failed = [each for each in rotated if each.problem is not None]
    stderr = notes()
    for each in failed:
        stderr.print(f"unchanged: {each.problem}", style="red", soft_wrap=True)
    done = len(rotated) - len(failed)
    stderr.print(f"{done} encrypted again" if rotated else "all are encrypted with the first key already")
    if failed:
        raise typer.Exit(1)


async def _show_rotation() -> "list[RotationResult]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("encrypting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rotated: list[RotationResult] = []
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
    """Read the state in a file. Its content never gets into a message."""
    import json

    from cplane.errors import InvalidSession

    where = "standard input" if file == "-" else f"'{file}'"
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidSession(f"{where} cannot be read: {error.strerror}") from None
    try:
        state: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError):  # from None, because the message would quote the content
        hint = "save one with `await context.storage_state(path=…)`"
        raise InvalidSession(f"{where} is not JSON", hint=hint) from None
    return state
