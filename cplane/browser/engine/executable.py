"""Where the browser's binary is."""

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
    """Who named the binary."""

    SETTING = "setting"
    PLAYWRIGHT = "playwright"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Executable:
    """A browser's binary. The headless shell starts and works about three times as fast as the full browser."""

    path: Path
    source: Source
    headless_shell: bool


def find_executable(configured: Path | None = None) -> Executable:
    """The browser to launch: `configured`, or CPLANE_BROWSER_EXECUTABLE, or Playwright's own, or one on PATH.

    Looks at files only; starts nothing.

    Raises:
        BrowserNotFound: there is none, or the configured one is no program.
    """
    named = configured or (Path(value) if (value := os.environ.get(VARIABLE)) else None)
    if named is not None:
        return _configured(named)
    for found in (*playwrights_own(), *on_path()):
        return found
    raise BrowserNotFound("there is no browser on this machine", hint="run `cplane browser install`")


def playwrights_own() -> Iterator[Executable]:
    """What `playwright install` has downloaded for the installed version, the headless shell first."""
    package = driver_package()
    if package is None:
        return
    folder = browsers_folder(package)
    for name, programs, shell in (
        ("chromium-headless-shell", ("chrome-headless-shell", "headless_shell"), True),
        ("chromium", ("chrome", "Google Chrome for Testing"), False),
    ):
        for path in _downloaded(folder / f"{name.replace('-', '_')}-{_revision(package, name)}", programs):
            yield Executable(path, Source.PLAYWRIGHT, headless_shell=shell)


def on_path() -> Iterator[Executable]:
    """The system's browsers, the headless shell first."""
    for name in (*SHELL_NAMES, *BROWSER_NAMES):
        if path := shutil.which(name):
            yield Executable(Path(path), Source.SYSTEM, headless_shell=name in SHELL_NAMES)


def driver_package() -> Path | None:
    """The folder of Playwright's driver; None when the driver is not where wheels put it."""
    spec = find_spec("playwright")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent / "driver" / "package"
    return package if (package / "browsers.json").is_file() else None


def browsers_folder(package: Path) -> Path:
    """Where Playwright keeps what it downloads, by Playwright's own rules."""
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


def _downloaded(folder: Path, programs: tuple[str, ...]) -> Iterator[Path]:
    """The program of a finished download; Playwright marks one with INSTALLATION_COMPLETE."""
    if not (folder / "INSTALLATION_COMPLETE").is_file():
        return
    for program in programs:
        for pattern in (f"*/{program}", f"*/{program}.exe", f"*/*.app/Contents/MacOS/{program}"):
            yield from (path for path in sorted(folder.glob(pattern)) if os.access(path, os.X_OK) and path.is_file())
