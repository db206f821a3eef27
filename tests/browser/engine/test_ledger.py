"""What killed workers leave behind is removed by the next worker."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from cplane.browser import BrowserPool
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.engine.process import Process
from tests.browser.pools import until


@pytest.fixture
def sleeper() -> Generator[Process]:
    """A process in its own process group, which stands for a browser."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as child:
        process = Process.find(child.pid)
        assert process is not None
        yield process
        child.kill()


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    folder = tmp_path / "playwright_chromiumdev_profile-abc"
    folder.mkdir()
    (folder / "Cookies").write_text("")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> ProcessRegistry:
    return ProcessRegistry(tmp_path / "registry")


def orphan(registry: ProcessRegistry, browser: Process) -> None:
    """Change the browser's file to name an owner that is gone."""
    path = registry.folder / f"{browser.pid}-{browser.started}.json"
    entry = json.loads(path.read_text())
    entry["owner"] = [entry["owner"][0], "1"]  # the same id with another start time
    path.write_text(json.dumps(entry))


async def test_a_browser_whose_worker_is_gone_is_killed_and_its_folder_removed(
    registry: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    await registry.add(sleeper, profile)
    orphan(registry, sleeper)
    assert await registry.sweep() == 1
    await until(lambda: not sleeper.alive)
    assert not profile.exists()
    assert list(registry.folder.iterdir()) == []


async def test_a_browser_whose_worker_lives_is_not_touched(
    registry: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    await registry.add(sleeper, profile)
    assert await registry.sweep() == 0
    assert sleeper.alive
    assert profile.exists()
    await registry.remove(sleeper, profile)
    assert not profile.exists()
    assert list(registry.folder.iterdir()) == []


async def test_a_later_process_with_the_same_id_is_not_killed(
    registry: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    earlier = Process(sleeper.pid, "1")
    await registry.add(earlier, profile)
    orphan(registry, earlier)
    assert await registry.sweep() == 1
    assert sleeper.alive
    assert not profile.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"owner": 1}', '{"owner": ["a"]}', "\0"])
async def test_a_malformed_file_is_removed_and_nothing_else(
    registry: ProcessRegistry, text: str, sleeper: Process
) -> None:
    registry.folder.mkdir(mode=0o700)
    (registry.folder / f"{sleeper.pid}-{sleeper.started}.json").write_text(text)
    assert await registry.sweep() == 0
    assert sleeper.alive
    assert list(registry.folder.iterdir()) == []


async def test_only_profile_folders_of_playwright_are_removed(
    registry: ProcessRegistry, sleeper: Process, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    await registry.add(sleeper, precious)
    orphan(registry, sleeper)
    assert await registry.sweep() == 1
    await until(lambda: not sleeper.alive)
    assert precious.exists()


async def test_a_registry_folder_that_is_a_symlink_is_not_trusted(
    registry: ProcessRegistry, sleeper: Process, tmp_path: Path
) -> None:
    elsewhere = ProcessRegistry(tmp_path / "elsewhere")
    await elsewhere.add(sleeper, None)
    orphan(elsewhere, sleeper)
    registry.folder.symlink_to(elsewhere.folder)
    assert await registry.sweep() == 0
    assert sleeper.alive


async def test_closing_a_pool_removes_its_browsers_from_the_registry_and_their_folders() -> None:
    async with BrowserPool(1) as pool:
        [browser] = pool.browsers
        assert browser.process is not None
        assert browser.profile is not None
        profile = browser.profile
        path = ProcessRegistry().folder / f"{browser.process.pid}-{browser.process.started}.json"
        assert path.exists()
        assert profile.exists()
    assert not path.exists()
    assert not profile.exists()


async def test_the_next_pool_removes_what_a_killed_worker_left(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(
        "import asyncio, os, signal\n"
        "from cplane.browser import BrowserPool\n"
        "async def main():\n"
        "    async with BrowserPool(1) as pool:\n"
        "        [browser] = pool.browsers\n"
        '        print("found", browser.process.pid, browser.profile, flush=True)\n'
        "        os.kill(browser.driver.process.pid, signal.SIGKILL)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)
    printed, _ = await asyncio.wait_for(worker.communicate(), 60)
    assert worker.returncode == -signal.SIGKILL
    found = next(line for line in printed.decode().splitlines() if line.startswith("found"))
    _, pid, profile = found.split()
    assert Path(profile).exists()
    async with BrowserPool(1):
        assert not Path(profile).exists()
        browser = Process.find(int(pid))
        assert browser is None or not browser.alive
