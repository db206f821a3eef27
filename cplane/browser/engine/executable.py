"""Finds the browser's binary."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from cplane.errors import BrowserNotFound

VARIABLE = "CPLANE_BROWSER_EXECUTABLE"
SHELL_NAMES = ("chromium-headless-shell", "chrome-headless-shell", "headless_shell")
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Source(StrEnum):
    """Where the path of a binary comes from."""

    SETTING = "setting"
    """CPLANE_BROWSER_EXECUTABLE, or an argument."""
    PLAYWRIGHT = "playwright"
    """Playwright's downloads."""
    SYSTEM = "system"
    """PATH."""


@dataclass(frozen=True, slots=True)
class Executable:
    """A browser's binary. The headless shell starts and runs about three times as fast as the full browser."""

    path: Path
    source: Source
    headless_shell: bool


def find_executable(configured: Path | None = None) -> Executable:
    """Find the browser to launch: `configured`, CPLANE_BROWSER_EXECUTABLE, Playwright's download, or one on PATH.

    It reads files only, and starts no process.

    Args:
        configured: path of a binary; it takes precedence over the environment.

    Raises:
        BrowserNotFound: there is none, or the configured one is not a program.
    """
    named = configured or (Path(value) if (value := os.environ.get(VARIABLE)) else None)
    if named is not None:
        return _configured(named)
    for found in (*downloaded(), *on_path()):
        return found
    raise BrowserNotFound("there is no browser on this machine", hint="run `cplane browser install`")


def downloaded() -> Iterator[Executable]:
    """Yield what `playwright install` has downloaded for the installed version, the headless shell first."""
    package = driver_package()
    if package is None:
        return
    folder = browsers_folder(package)
    for name, programs, shell in (
        ("chromium-headless-shell", ("chrome-headless-shell", "headless_shell"), True),
        ("chromium", ("chrome", "Google Chrome for Testing"), False),
    ):
        for path in _programs(folder / f"{name.replace('-', '_')}-{_revision(package, name)}", programs):
            yield Executable(path, Source.PLAYWRIGHT, headless_shell=shell)


def on_path() -> Iterator[Executable]:
    """Yield the browsers on PATH, the headless shell first."""
    for name in (*SHELL_NAMES, *BROWSER_NAMES):
        if path := shutil.which(name):
            yield Executable(Path(path), Source.SYSTEM, headless_shell=name in SHELL_NAMES)


def driver_package() -> Path | None:
    """Return the folder of Playwright's driver; None if the driver is not where Playwright's wheels put it."""
    spec = find_spec("playwright")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent / "driver" / "package"
    return package if (package / "browsers.json").is_file() else None


def browsers_folder(package: Path) -> Path:
    """Return the folder of Playwright's downloads, by Playwright's own rules."""
    configured = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "")
    if configured == "0":
        return package / ".local-browsers"
    if configured:
        return Path(configured).absolute()
    return _cache_folder() / "ms-playwright"


def _configured(path: Path) -> Executable:
    program = shutil.which(path)
    if program is None:
        raise BrowserNotFound(f"{VARIABLE} is {path}, which is not a program", hint="correct or unset it")
    shell = path.stem.replace("_", "-").endswith("headless-shell")
    return Executable(Path(program), Source.SETTING, headless_shell=shell)


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _revision(package: Path, name: str) -> str:
    listed = cast("dict[str, list[dict[str, object]]]", json.loads((package / "browsers.json").read_text()))
    return next((str(browser["revision"]) for browser in listed["browsers"] if browser["name"] == name), "")


def _programs(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the program of a finished download, which Playwright marks with INSTALLATION_COMPLETE."""
    if not (folder / "INSTALLATION_COMPLETE").is_file():
        return
    for name in names:
        for pattern in (f"*/{name}", f"*/{name}.exe", f"*/*.app/Contents/MacOS/{name}"):
            yield from (path for path in sorted(folder.glob(pattern)) if os.access(path, os.X_OK) and path.is_file())
