"""What killed workers leave behind is removed by the next."""

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
    """A process in a group of its own, in the part of a browser."""
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
def ledger(tmp_path: Path) -> ProcessRegistry:
    return ProcessRegistry(tmp_path / "ledger")


def orphan(ledger: ProcessRegistry, browser: Process) -> None:
    """Let the browser's file name an owner that is gone."""
    path = ledger.folder / f"{browser.pid}-{browser.started}.json"
    entry = json.loads(path.read_text())
    entry["owner"] = [entry["owner"][0], "1"]  # a process of that number, but not that one
    path.write_text(json.dumps(entry))


async def test_a_browser_whose_worker_is_gone_is_ended_and_its_folder_removed(
    ledger: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    await ledger.add(sleeper, profile)
    orphan(ledger, sleeper)
    assert await ledger.sweep() == 1
    await until(lambda: not sleeper.alive)
    assert not profile.exists()
    assert list(ledger.folder.iterdir()) == []


async def test_a_browser_whose_worker_lives_is_not_touched(
    ledger: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    await ledger.add(sleeper, profile)
    assert await ledger.sweep() == 0
    assert sleeper.alive
    assert profile.exists()
    await ledger.remove(sleeper, profile)
    assert not profile.exists()
    assert list(ledger.folder.iterdir()) == []


async def test_a_later_process_of_the_same_number_is_not_killed(
    ledger: ProcessRegistry, sleeper: Process, profile: Path
) -> None:
    earlier = Process(sleeper.pid, "1")
    await ledger.add(earlier, profile)
    orphan(ledger, earlier)
    assert await ledger.sweep() == 1
    assert sleeper.alive
    assert not profile.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"owner": 1}', '{"owner": ["a"]}', "\0"])
async def test_a_file_that_is_none_of_ours_is_removed_and_nothing_else(
    ledger: ProcessRegistry, text: str, sleeper: Process
) -> None:
    ledger.folder.mkdir(mode=0o700)
    (ledger.folder / f"{sleeper.pid}-{sleeper.started}.json").write_text(text)
    assert await ledger.sweep() == 0
    assert sleeper.alive
    assert list(ledger.folder.iterdir()) == []


async def test_only_folders_of_playwrights_are_removed(
    ledger: ProcessRegistry, sleeper: Process, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    await ledger.add(sleeper, precious)
    orphan(ledger, sleeper)
    assert await ledger.sweep() == 1
    await until(lambda: not sleeper.alive)
    assert precious.exists()


async def test_a_folder_that_is_a_link_is_not_trusted(
    ledger: ProcessRegistry, sleeper: Process, tmp_path: Path
) -> None:
    elsewhere = ProcessRegistry(tmp_path / "elsewhere")
    await elsewhere.add(sleeper, None)
    orphan(elsewhere, sleeper)
    ledger.folder.symlink_to(elsewhere.folder)
    assert await ledger.sweep() == 0
    assert sleeper.alive


async def test_a_pool_that_is_left_strikes_its_browsers_and_their_folders() -> None:
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
    told, _ = await asyncio.wait_for(worker.communicate(), 60)
    assert worker.returncode == -signal.SIGKILL
    found = next(line for line in told.decode().splitlines() if line.startswith("found"))
    _, pid, profile = found.split()
    assert Path(profile).exists()
    async with BrowserPool(1):
        assert not Path(profile).exists()
        browser = Process.find(int(pid))
        assert browser is None or not browser.alive
