"""Which browser binary is found."""

import json
import os
from pathlib import Path

import pytest

from cplane.browser import Executable, Source, find_executable
from cplane.browser.engine import executable
from cplane.errors import BrowserNotFound


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a browser: an empty PATH and an empty folder of downloads."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "downloads"))
    monkeypatch.delenv("CPLANE_BROWSER_EXECUTABLE", raising=False)
    return tmp_path


def download(machine: Path, name: str, file: str) -> Path:
    package = executable.driver_package()
    assert package is not None
    listed = json.loads((package / "browsers.json").read_text())["browsers"]
    revision = next(browser["revision"] for browser in listed if browser["name"] == name)
    folder = machine / "downloads" / f"{name.replace('-', '_')}-{revision}"
    path = program(folder / file)
    (folder / "INSTALLATION_COMPLETE").touch()
    return path


def test_the_hint_has_the_command_if_there_is_no_browser(machine: Path) -> None:
    with pytest.raises(BrowserNotFound) as caught:
        find_executable()
    assert caught.value.hint == "run `cplane browser install`"


def test_on_path_the_headless_shell_precedes_chromium_and_chromium_precedes_chrome(machine: Path) -> None:
    chrome = program(machine / "bin" / "google-chrome")
    assert find_executable() == Executable(chrome, Source.SYSTEM, headless_shell=False)
    chromium = program(machine / "bin" / "chromium")
    assert find_executable() == Executable(chromium, Source.SYSTEM, headless_shell=False)
    shell = program(machine / "bin" / "chromium-headless-shell")
    assert find_executable() == Executable(shell, Source.SYSTEM, headless_shell=True)


def test_playwrights_download_precedes_the_path_and_its_headless_shell_the_full_browser(machine: Path) -> None:
    program(machine / "bin" / "chromium-headless-shell")
    full = download(machine, "chromium", "chrome-linux64/chrome")
    assert find_executable() == Executable(full, Source.PLAYWRIGHT, headless_shell=False)
    shell = download(machine, "chromium-headless-shell", "chrome-headless-shell-linux64/chrome-headless-shell")
    assert find_executable() == Executable(shell, Source.PLAYWRIGHT, headless_shell=True)


def test_an_unfinished_download_is_ignored(machine: Path) -> None:
    path = download(machine, "chromium", "chrome-linux64/chrome")
    (path.parent.parent / "INSTALLATION_COMPLETE").unlink()
    with pytest.raises(BrowserNotFound):
        find_executable()


def test_a_download_for_another_version_of_playwright_is_ignored(machine: Path) -> None:
    path = download(machine, "chromium", "chrome-linux64/chrome")
    path.parent.parent.rename(machine / "downloads" / "chromium-1")
    with pytest.raises(BrowserNotFound):
        find_executable()


def test_the_argument_precedes_the_variable_and_the_variable_precedes_downloads(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(machine, "chromium", "chrome-linux64/chrome")
    variable, argument = program(machine / "one" / "chrome"), program(machine / "two" / "my-headless-shell")
    monkeypatch.setenv("CPLANE_BROWSER_EXECUTABLE", str(variable))
    assert find_executable() == Executable(variable, Source.SETTING, headless_shell=False)
    assert find_executable(argument) == Executable(argument, Source.SETTING, headless_shell=True)


def test_a_setting_that_is_not_a_program_is_an_error_without_a_fallback(machine: Path) -> None:
    program(machine / "bin" / "chromium")
    plain = machine / "plain"
    plain.touch()
    for wrong in (plain, machine / "missing"):
        with pytest.raises(BrowserNotFound, match=f"CPLANE_BROWSER_EXECUTABLE is {wrong}, which is not a program"):
            find_executable(wrong)


def test_the_folder_of_downloads_follows_playwrights_rules(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = executable.driver_package()
    assert package is not None
    assert executable.browsers_folder(package) == tmp_path / "downloads"
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", "0")
    assert executable.browsers_folder(package) == package / ".local-browsers"
    monkeypatch.delenv("PLAYWRIGHT_BROWSERS_PATH")
    if os.uname().sysname == "Linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert executable.browsers_folder(package) == tmp_path / "cache" / "ms-playwright"
