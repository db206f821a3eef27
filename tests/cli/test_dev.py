import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cplane, Start


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
async def test_everything_starts_works_and_stops(
    start: "Start", cplane: "Cplane", folder: Path, app: Path, sent: signal.Signals
) -> None:
    import httpx2

    async with start("dev", app.name, "--port", "0") as dev:
        await dev.until("cplane is ready")
        await dev.until("Ctrl-C")
        stack = json.loads((folder / ".cplane" / "stack.json").read_text())
        async with httpx2.AsyncClient(base_url=stack["api_url"]) as client:
            assert (await client.get("/readyz")).status_code == 200
            submitted = await client.post("/api/v1/jobs?wait=30", json={"job": "add", "args": {"x": 1, "y": 2}})
        assert submitted.json()["result"] == 3
        ended = await cplane("submit", "--imports", "app", "add", "x=3", "y=4")
        assert (ended.code, ended.stdout) == (0, "7\n")
        children = descendants(dev.pid)
        assert len(children) > 3
        ended = await dev.stop(sent)
    assert ended.code == 0
    assert "stopped" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [command for pid, command in children.items() if command_of(pid) == command]
    assert not (folder / ".cplane" / "stack.json").exists()


async def test_data_is_kept_from_one_run_to_the_next(start: "Start", cplane: "Cplane") -> None:
    async with start("dev", "--port", "0") as dev:
        await dev.until("Ctrl-C")
        job_id = (await cplane("submit", "links", "url=http://127.0.0.1:1/", "--no-wait", "--delay", "600")).stdout
        await dev.stop()
    async with start("dev", "--port", "0") as dev:
        await dev.until("Ctrl-C")
        assert (await cplane("jobs", "show", job_id.strip())).code == 0
        await dev.stop()


async def test_servers_of_the_environment_are_used(start: "Start", addresses: dict[str, str], folder: Path) -> None:
    async with start("dev", "--port", "0", **addresses) as dev:
        await dev.until("cplane is ready")
        assert "postgresql://" in await dev.until("data")
        assert not (folder / ".cplane").exists()
        assert (await dev.stop()).code == 0


async def test_a_second_dev_in_the_same_folder_is_refused(start: "Start", cplane: "Cplane") -> None:
    async with start("dev", "--port", "0") as dev:
        await dev.until("Ctrl-C")
        second = await cplane("dev", "--port", "0")
        assert second.code == 1
        assert second.stderr.startswith("error: another stack runs")
        await dev.stop()


async def test_without_a_browser_it_says_how_to_install_one(
    start: "Start", addresses: dict[str, str], tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    addresses |= {"PATH": str(tools), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}
    async with start("dev", "--port", "0", **addresses) as dev:
        await dev.until("cplane is ready")
        assert "cplane browser install" in await dev.until(" browser ")
        assert (await dev.stop()).code == 0


def descendants(pid: int) -> dict[int, str]:
    """The children of a process, their children and so on: pid → command line."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := read(entry / "stat")):
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return {child: command_of(child) for child in found}


def command_of(pid: int) -> str:
    return read(Path("/proc") / str(pid) / "cmdline")


def read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""
