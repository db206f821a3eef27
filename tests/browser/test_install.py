import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cplane.browser import Executable, Source, install
from cplane.browser.engine.launch import BrowserSource
from cplane.browser.install import manual_commands, run
from cplane.errors import BrowserNotFound

installing = sys.modules["cplane.browser.install"]


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without browser, network or package manager."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "downloads"))
    monkeypatch.setattr(installing, "DOWNLOAD", ("/bin/sh", "-c", "echo 'getaddrinfo ENOTFOUND'; exit 1"))
    return tmp_path


async def test_lines_are_reported_as_they_come() -> None:
    lines: list[str] = []
    assert await run(("/bin/sh", "-c", "echo one; echo two >&2; printf three"), lines.append, within_s=10)
    assert lines[1:] == ["one", "two", "three"]


async def test_a_tool_that_fails_or_is_missing_is_reported() -> None:
    lines: list[str] = []
    assert not await run(("/bin/sh", "-c", "exit 3"), lines.append, within_s=10)
    assert not await run(("/missing/tool",), lines.append, within_s=10)
    assert "No such file" in lines[-1]


async def test_a_silent_tool_is_killed_with_its_descendants(descendants: Callable[[], set[int]]) -> None:
    before, lines, began = descendants(), list[str](), time.monotonic()
    assert not await run(("/bin/sh", "-c", "sleep 60 & sleep 60"), lines.append, within_s=60, silence_s=0.2)
    assert time.monotonic() - began < 10
    assert "took too long" in lines[-1]
    assert descendants() <= before


async def test_a_cancelled_tool_is_killed(descendants: Callable[[], set[int]]) -> None:
    before = descendants()
    started = asyncio.Event()
    task = asyncio.create_task(
        run(("/bin/sh", "-c", "echo up; sleep 60"), lambda line: started.set() if line == "up" else None, within_s=60)
    )
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert descendants() <= before


async def test_the_hint_has_the_commands_if_nothing_could_be_installed(machine: Path) -> None:
    lines: list[str] = []
    with pytest.raises(BrowserNotFound) as caught:
        await install(lines.append)
    assert caught.value.hint == "type: python -m playwright install --with-deps --only-shell chromium"
    assert "getaddrinfo ENOTFOUND" in lines


async def test_no_package_is_installed_without_permission(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(machine / "bin" / "apt-get", "exit 1")
    program(machine / "bin" / "sudo", "echo 'sudo: a password is required'; exit 1")
    lines: list[str] = []
    with pytest.raises(BrowserNotFound) as caught:
        await install(lines.append)
    assert not [line for line in lines if line.startswith("$ apt-get")]
    assert caught.value.hint is not None
    assert "sudo apt-get update && sudo apt-get install --yes" in caught.value.hint


async def test_the_package_manager_runs_with_sudo_that_needs_no_password(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    log = shlex.quote(str(machine / "log"))
    program(machine / "bin" / "sudo", f'printf "%s\\n" "$*" >> {log}')
    program(machine / "bin" / "apt-get", "exit 0")
    shell = machine / "bin" / "chromium-headless-shell"
    program(shell, "exit 0")
    probed: list[Path | None] = []

    async def works(source: BrowserSource) -> str:
        probed.append(source.executable)
        return "1.0"

    monkeypatch.setattr(installing, "probe", works)
    assert await install(lambda line: None) == Executable(shell, Source.SYSTEM, headless_shell=True)
    assert probed == [shell]
    assert (machine / "log").read_text().splitlines() == [
        "-n true",
        "-n DEBIAN_FRONTEND=noninteractive apt-get update",
        f"-n DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {shell.name} fonts-liberation",
    ]


async def test_an_installed_browser_that_does_not_start_counts_as_a_failure(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(machine / "bin" / "apt-get", "exit 0")
    program(
        machine / "bin" / "chromium-headless-shell",
        "echo 'error while loading shared libraries: libnss3.so' >&2; exit 1",
    )
    lines: list[str] = []
    with pytest.raises(BrowserNotFound, match="no browser could be installed"):
        await install(lines.append)
    assert any("libnss3.so" in line for line in lines)


def test_the_commands_for_root_have_no_sudo(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(machine / "bin" / "apt-get", "exit 0")
    assert "sudo" not in manual_commands()
