"""A registry on disk of the browsers that run, so that the next worker removes what a killed one left behind."""

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
    """One file for each browser, and a folder for its artifacts, in a folder of this user.

    Both are removed when a browser ends gracefully. The files of a killed worker stay. The next pool that is opened
    ends the browsers they name that still run, and removes their folders (`sweep`): Playwright does neither when its
    driver is killed. Nothing that no file names is touched.

    Args:
        folder: where the files are; default: a folder for this user among the temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        self.folder = folder or Path(tempfile.gettempdir()) / f"cplane-browsers-{user}"

    @asynccontextmanager
    async def artifacts(self) -> AsyncGenerator[Path]:
        """Make a folder for the artifacts of a browser that is launched in the block; remove it if that fails."""
        folder = await asyncio.to_thread(self._make_artifacts)
        try:
            yield folder
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    async def add(self, browser: Process | None, profile: Path | None) -> None:
        """Register a browser and its profile folder."""
        if browser is not None:
            await asyncio.to_thread(self._add, browser, profile)

    async def remove(self, browser: Process | None, profile: Path | None, artifacts: Path | None = None) -> None:
        """Remove a browser that has ended, with its folders if they still exist."""
        await asyncio.to_thread(self._remove, browser, profile, artifacts)

    async def sweep(self) -> int:
        """Remove what processes that are gone left behind, and kill their browsers; returns how many there were."""
        return await asyncio.to_thread(self._sweep)

    def _file(self, browser: Process) -> Path:
        return self.folder / f"{browser.pid}-{browser.started}.json"

    def _add(self, browser: Process, profile: Path | None) -> None:
        owner = Process.find(os.getpid())
        if owner is None or not self._make_folder():
            return
        entry = {"owner": [owner.pid, owner.started], "profile": str(profile) if profile else None}
        unfinished = self._file(browser).with_suffix(".new")
        unfinished.write_text(json.dumps(entry))
        unfinished.rename(self._file(browser))

    def _make_artifacts(self) -> Path:
        """Make a folder whose name tells its owner; if the registry has no folder, an ordinary temporary one."""
        owner = Process.find(os.getpid())
        if owner is None or not self._make_folder():
            return Path(tempfile.mkdtemp(prefix="cplane-artifacts-"))
        return Path(tempfile.mkdtemp(prefix=f"artifacts-{owner.pid}-{owner.started}-", dir=self.folder))

    def _make_folder(self) -> bool:
        """Make the registry's folder. One of another user is not trusted: what its files name would be removed."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            return self.folder.stat().st_uid == os.getuid() and not self.folder.is_symlink()
        except OSError as error:
            log.warning("browsers_not_registered", reason=str(error), effect="those of a killed worker may stay")
            return False

    def _remove(self, browser: Process | None, profile: Path | None, artifacts: Path | None) -> None:
        for folder in (profile, artifacts):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        if browser is not None:
            self._file(browser).unlink(missing_ok=True)

    def _sweep(self) -> int:
        if not self.folder.is_dir() or not self._make_folder():
            return 0
        for folder in self.folder.glob("artifacts-*"):
            _, pid, started, *_ = folder.name.split("-")
            if not Process(int(pid), started).alive:
                shutil.rmtree(folder, ignore_errors=True)
        return sum(self._sweep_file(path) for path in self.folder.glob("*.json"))

    def _sweep_file(self, path: Path) -> bool:
        """Kill and remove what one file names, if its owner is gone; returns whether it was."""
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
        self._remove(browser, Path(profile) if isinstance(profile, str) and "dev_profile-" in profile else None, None)
        log.info("orphaned_browser_removed", pid=browser.pid)
        return True
