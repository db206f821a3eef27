import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cplane

COMMANDS = (
    *("demo", "dev", "submit", "worker", "web", "doctor", "jobs", "queues", "dead-letters"),
    *("sessions", "secret", "db", "browser"),
)
HEAVY = {"alembic", "asyncpg", "arq", "obstore", "playwright", "pydantic", "redis", "sqlalchemy", "sqlmodel", "uvicorn"}


async def test_help_names_every_command_with_an_example(cplane: "Cplane") -> None:
    ended = await cplane("--help")
    assert ended.code == 0
    assert ended.stderr == ""
    for command in COMMANDS:
        assert re.search(rf"│ {command} +\w+", ended.stdout), command
        assert f"$ cplane {command}" in ended.stdout, command


@pytest.mark.parametrize(
    "command",
    [
        *([command] for command in COMMANDS),
        *(["jobs", verb] for verb in ("list", "show", "cancel", "retry")),
        ["dead-letters", "list"],
        ["dead-letters", "requeue"],
        ["dead-letters", "drop"],
        ["queues", "hosts"],
        *(["sessions", verb] for verb in ("list", "import", "delete", "rotate")),
        ["db", "upgrade"],
        ["browser", "install"],
    ],
    ids=" ".join,
)
async def test_every_command_explains_itself_with_an_example(cplane: "Cplane", command: list[str]) -> None:
    ended = await cplane(*command, "--help")
    assert ended.code == 0
    assert f"$ cplane {' '.join(command)}" in ended.stdout


async def test_help_imports_neither_database_nor_browser_nor_server() -> None:
    command = (sys.executable, "-X", "importtime", str(Path(sys.executable).with_name("cplane")), "--help")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    _, stderr = await process.communicate()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in stderr.decode().splitlines()}
    assert process.returncode == 0
    assert "typer" in imported
    assert not imported & HEAVY


async def test_version(cplane: "Cplane") -> None:
    from cplane import __version__

    ended = await cplane("--version")
    assert (ended.code, ended.stdout) == (0, f"cplane {__version__}\n")


async def test_without_a_command_help_is_shown(cplane: "Cplane") -> None:
    ended = await cplane()
    assert "Usage: cplane" in ended.stdout
