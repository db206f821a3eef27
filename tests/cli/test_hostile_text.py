"""What pages, callers and jobs wrote is printed as text: it neither styles the output nor acts on the terminal."""

import ast
import asyncio
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic_core import to_json
from rich.text import Text
from typer.main import get_command

import cplane
from cplane import ControlPlane, State, job
from cplane.cli.app import app
from cplane.cli.console import print_error, styled
from cplane.cli.terminal import Terminal
from cplane.demo.report import results_table
from cplane.demo.tour import VisitResult
from cplane.demo.visits import Visit
from cplane.errors import CplaneError, JobFailed
from cplane.jobs.context import Progress
from cplane.jobs.states import AttemptState
from cplane.postgres.rows import Finish
from cplane.redis.dead_letters import DEAD_LETTERS
from cplane.runtime.error_text import Error
from cplane.runtime.visible import visible

HOSTILE = (
    "[/boom] [link=http://evil.example]x[/link] [red]r\\ :warning: "  # markup
    "\x1b]0;owned\x07 \x1b]52;c;b3duZWQ=\x1b\\ \x1b[2J \x9b31m "  # OSC: title and clipboard, CSI: clear
    "\rover \x08 \u202egnp.exe\u202c \u2066 \u2028 \x7f \x85"
)
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SGR = re.compile(r"\x1b\[[\d;]*m")
"""Colours, which we print ourselves."""


@job
async def cli_hostile(value: dict[str, str]) -> None: ...


async def finish(plane: ControlPlane, state: State, **outcome: Any) -> UUID:
    """Record a job that had hostile arguments and ended with an outcome."""
    handle = await plane.create_job("cli_hostile", {"value": {HOSTILE: HOSTILE}})
    (started,) = await plane.store.start(HOSTILE, [handle.id], uuid4().hex, 30)
    artifact, path = await plane.artifacts.put(handle.id, 1, "page.html", b"x", HOSTILE)
    await plane.store.add_artifact(handle.id, 1, artifact, path)
    await plane.store.finish(
        [
            Finish(
                id=started.id,
                attempt=started.attempt,
                token=started.token,
                state=state,
                attempt_state=AttemptState(state),
                progress=Progress(1, 2, HOSTILE),
                **outcome,
            )
        ]
    )
    return handle.id


def output_of(*command: str) -> str:
    """Return what a command prints, run in this process: a dozen processes would take a minute."""
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(stdout):
        try:
            get_command(app)(list(command), standalone_mode=False)
        except CplaneError as error:
            print_error(error)
    return stdout.getvalue()


async def test_no_command_that_prints_a_record_prints_what_acts(
    plane: ControlPlane, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    for name, value in addresses.items():
        monkeypatch.setenv(name, value)
    failed = await finish(plane, State.FAILED, error=Error("[/boom]", HOSTILE, HOSTILE), failures=1)
    titled = await finish(plane, State.SUCCEEDED, result_json=to_json({"title": HOSTILE, HOSTILE: [HOSTILE]}))
    await plane.redis.xadd(DEAD_LETTERS, {"queue": HOSTILE, "id": HOSTILE, "reason": HOSTILE, "payload": b""})  # pyright: ignore[reportUnknownMemberType]
    for command, shown in (
        (("jobs", "show", str(failed)), "[/boom]"),
        (("jobs", "show", str(titled)), "[/boom]"),
        (("jobs", "show", str(titled), "--json"), "[/boom]"),
        (("jobs", "list"), "cli_hostile"),
        (("jobs", "list", "--json"), "[/boom]"),
        (("dead-letters",), "[/boom]"),
        (("dead-letters", "list", "--json"), "[/boom]"),
        (("dead-letters", "drop", HOSTILE), "dropped"),
        (("dead-letters", "drop", HOSTILE), "[/boom]"),  # the error quotes the id
        (("jobs", "cancel", HOSTILE), "[/boom]"),
        (("queues",), "default"),
    ):
        output = await asyncio.to_thread(output_of, *command)
        with subtests.test(command=" ".join(command)[:40]):
            assert shown in output
            assert not ACTS.search(output)
            if command[1:2] == ("show",) and "--json" in command:
                assert json.loads(output)["result"]["title"] == HOSTILE, "for a program it is the same text"


def printed(*renderables: Any, width: int = 4000) -> str:
    """Return what a terminal receives, without colours."""
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, width=width, color_system="truecolor").print(*renderables)
    return SGR.sub("", file.getvalue())


def test_a_terminal_prints_text_from_elsewhere_as_text() -> None:
    for renderable in (HOSTILE, Text(HOSTILE, "red"), styled("[green]saved[/] {} and {}", HOSTILE, HOSTILE + "\\")):
        output = printed(renderable)
        assert not ACTS.search(output)
        assert "[/boom] [link=http://evil.example]x[/link] [red]r\\ :warning: \\x1b]0;owned" in output
        assert "\\u202egnp.exe\\u202c" in output


def test_results_of_the_demo_are_printed_as_text() -> None:
    now = datetime.now(UTC).isoformat()
    record = {"id": HOSTILE, "state": "succeeded", "started_at": now, "finished_at": now, "result": {"title": HOSTILE}}
    failed = record | {"state": "failed", "error": {"type": "[/boom]", "message": HOSTILE}}
    visit = Visit("pdf", HOSTILE, "")
    output = printed(results_table([VisitResult(visit, each, None, 0) for each in (record, failed)]))
    assert not ACTS.search(output)
    assert output.count("[/boom] [link=http://evil.example]") >= 4


def test_an_error_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(JobFailed("[/job]", "[/boom]", HOSTILE, HOSTILE))
    output = capsys.readouterr().err
    assert not ACTS.search(output)
    assert "[/boom]" in output


def test_harmless_text_stays_the_same() -> None:
    for text in ("naïve 日本語 عربي 👩‍💻\n\tindented", "[brackets]", ""):
        assert visible(text) == text
        assert printed(text).rstrip("\n").replace(" ", "") == text.expandtabs(8).rstrip("\n").replace(" ", "")


def test_every_console_is_ours() -> None:
    folder = Path(cplane.__file__).parent
    for path in (*(folder / "cli").glob("*.py"), *(folder / "demo").glob("*.py")):
        if path.name in {"terminal.py", "console.py"}:
            continue
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        assert not called & {"Console", "from_markup", "render_str"}, path.name
        markup = re.findall(r"print\((?:f?\"[^\"]*)\[/?\w*\][^\"]*\"", path.read_text())
        assert not markup, path.name


def test_progress_columns_read_no_markup() -> None:
    folder = Path(cplane.__file__).parent / "cli"
    for path in folder.glob("*.py"):
        for column in re.findall(r"TextColumn\((.*)\)", path.read_text()):
            assert "{task" not in column or "markup=False" in column, path.name


def test_log_lines_for_people_show_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    import structlog

    from cplane.logs import configure_logs
    from cplane.settings import load_settings

    try:
        configure_logs(load_settings(database_url="postgresql://h/d", redis_url="redis://h"))
        log = structlog.get_logger("cplane")
        log.warning("page_failed", reason=HOSTILE, short="\x1b[2J")
        try:
            raise LookupError(HOSTILE)
        except LookupError:
            log.exception("job_failed")
    finally:
        structlog.reset_defaults()
    output = capsys.readouterr().err
    assert "page_failed" in output
    assert "LookupError" in output
    assert not ACTS.search(SGR.sub("", output))
