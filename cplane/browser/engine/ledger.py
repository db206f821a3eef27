"""What this process started and must not leave behind: browsers and their profile folders, written down where the next worker looks."""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import structlog

from cplane.browser.engine.process import Process

log = structlog.get_logger("cplane")


class ProcessRegistry:
    """One file for each browser, in a folder of this user's, and a folder for its artifacts; a browser that ended in good order takes both along.

    A worker that is killed leaves its files. Whoever opens a pool next ends the browsers in them that still run and
    removes their folders (`sweep`): Playwright does neither when its driver is killed. Nothing that is not in a file is touched.
    """

    def __init__(self, folder: Path | None = None) -> None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        self.folder = folder or Path(tempfile.gettempdir()) / f"cplane-browsers-{user}"

    @asynccontextmanager
    async def artifacts(self) -> AsyncGenerator[Path]:
        """A folder for what a browser that is being launched puts down; it stays unless that fails."""
        folder = await asyncio.to_thread(self._make_artifacts)
        try:
            yield folder
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    async def enter(self, browser: Process | None, profile: Path | None) -> None:
        """Write a browser down."""
        if browser is not None:
            await asyncio.to_thread(self._enter, browser, profile)

    async def strike(self, browser: Process | None, profile: Path | None, artifacts: Path | None = None) -> None:
        """A browser has ended: remove its folders, if it left them, and its file."""
        await asyncio.to_thread(self._strike, browser, profile, artifacts)

    async def sweep(self) -> int:
        """End and remove what processes that are gone left behind; answers of how many browsers."""
        return await asyncio.to_thread(self._sweep)

    def _file(self, browser: Process) -> Path:
        return self.folder / f"{browser.pid}-{browser.started}.json"

    def _enter(self, browser: Process, profile: Path | None) -> None:
        owner = Process.find(os.getpid())
        if owner is None or not self._own():
            return
        entry = {"owner": [owner.pid, owner.started], "profile": str(profile) if profile else None}
        half = self._file(browser).with_suffix(".new")
        half.write_text(json.dumps(entry))
        half.rename(self._file(browser))

    def _make_artifacts(self) -> Path:
        """Its name says whose it is; where the ledger cannot be kept, it is a temporary folder like any other."""
        owner = Process.find(os.getpid())
        if owner is None or not self._own():
            return Path(tempfile.mkdtemp(prefix="cplane-artifacts-"))
        return Path(tempfile.mkdtemp(prefix=f"artifacts-{owner.pid}-{owner.started}-", dir=self.folder))

    def _own(self) -> bool:
        """Make the folder. One that belongs to somebody else is not trusted: what stands in it would be removed."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            return self.folder.stat().st_uid == os.getuid() and not self.folder.is_symlink()
        except OSError as error:
            log.warning("browsers are not written down; after a kill they may stay", reason=str(error))
            return False

    def _strike(self, browser: Process | None, profile: Path | None, artifacts: Path | None) -> None:
        for folder in (profile, artifacts):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        if browser is not None:
            self._file(browser).unlink(missing_ok=True)

    def _sweep(self) -> int:
        if not self.folder.is_dir() or not self._own():
            return 0
        for folder in self.folder.glob("artifacts-*"):
            _, pid, started, *_ = folder.name.split("-")
            if not Process(int(pid), started).alive:
                shutil.rmtree(folder, ignore_errors=True)
        return sum(self._settle(path) for path in self.folder.glob("*.json"))

    def _settle(self, path: Path) -> bool:
        """End and remove what one file names, if its owner is gone."""
        pid, _, started = path.stem.partition("-")
        try:
            entry = cast("dict[str, object]", json.loads(path.read_text()))
            owner = Process(*cast("tuple[int, str]", tuple(cast("list[object]", entry["owner"]))))
            browser = Process(int(pid), started)
        except (OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        if owner.alive:
            return False
        browser.kill()
        profile = entry.get("profile")
        self._strike(browser, Path(profile) if isinstance(profile, str) and "dev_profile-" in profile else None, None)
        log.info("a browser that its worker left behind was removed", pid=browser.pid)
        return True
