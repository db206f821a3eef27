"""Child server processes: readiness, errors, stop, and death with the parent."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cplane.dev.parent import ParentWatch
from cplane.dev.process import ServerProcess
from cplane.errors import ServerStartError

DEADLINE_S = 10.0

PARENT = """
import asyncio, signal, sys
from pathlib import Path
from cplane.dev.parent import ParentWatch
from cplane.dev.process import ServerProcess

async def ready(pid):
    return True

async def main():
    server = ServerProcess("Server", sys.argv[2:], log=Path(sys.argv[1]))
    await server.start(ready, timeout_s=10)
    print(server.pid, flush=True)
    await asyncio.sleep(60)

async def watched():
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    async with ParentWatch(child.pid, signal.SIGKILL):
        print(child.pid, flush=True)
        await asyncio.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still alive"
        time.sleep(0.01)


def pid_of_child_after_killing_parent(code: str, arguments: Sequence[str]) -> int:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + code, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    return pid


def shell(script: str, tmp_path: Path) -> ServerProcess:
    return ServerProcess("Server", ["/bin/sh", "-c", script], log=tmp_path / "server.log")


async def always_ready(pid: int) -> bool:
    return True


async def never_ready(pid: int) -> bool:
    return False


async def test_a_started_server_runs_until_it_is_stopped(tmp_path: Path) -> None:
    async def printed(pid: int) -> bool:
        return "up" in (tmp_path / "server.log").read_text()

    server = shell("echo up; exec sleep 60", tmp_path)
    await server.start(printed, timeout_s=DEADLINE_S)
    assert is_alive(server.pid)
    await server.stop()
    assert not is_alive(server.pid)


async def test_a_server_that_ends_early_raises_with_its_last_lines(tmp_path: Path) -> None:
    server = shell("for line in 1 2 3 4 5 6 last; do echo line $line; done; exit 3", tmp_path)
    with pytest.raises(ServerStartError, match="Server ended with exit code 3: line 3") as caught:
        await server.start(never_ready, timeout_s=DEADLINE_S)
    assert "line last" in caught.value.message
    assert str(tmp_path / "server.log") in str(caught.value.hint)


async def test_a_server_that_is_never_ready_is_stopped_at_the_deadline(tmp_path: Path) -> None:
    server = shell("exec sleep 60", tmp_path)
    with pytest.raises(ServerStartError, match=r"was not ready within 0\.2 seconds: there is no output"):
        await server.start(never_ready, timeout_s=0.2)
    assert not is_alive(server.pid)


async def test_a_missing_command_raises_a_start_error(tmp_path: Path) -> None:
    server = ServerProcess("Server", [str(tmp_path / "absent")], log=tmp_path / "server.log")
    with pytest.raises(ServerStartError, match="Server could not be started"):
        await server.start(always_ready, timeout_s=DEADLINE_S)


async def test_a_probe_that_raises_leaves_no_process_behind(tmp_path: Path) -> None:
    async def broken(pid: int) -> bool:
        raise ValueError("broken probe")

    server = shell("exec sleep 60", tmp_path)
    with pytest.raises(ValueError, match="broken probe"):
        await server.start(broken, timeout_s=DEADLINE_S)
    assert not is_alive(server.pid)


async def test_a_server_that_ignores_the_stop_signal_is_killed(tmp_path: Path) -> None:
    async def trapped(pid: int) -> bool:
        return "trapped" in (tmp_path / "server.log").read_text()

    server = shell('trap "" TERM; echo trapped; while :; do sleep 60; done', tmp_path)
    await server.start(trapped, timeout_s=DEADLINE_S)
    await server.stop(timeout_s=0.2)
    assert not is_alive(server.pid)


async def test_a_cancellation_during_start_leaves_no_process_behind(tmp_path: Path) -> None:
    probed = asyncio.Event()

    async def waiting(pid: int) -> bool:
        probed.set()
        return False

    server = shell("exec sleep 60", tmp_path)
    start = asyncio.create_task(server.start(waiting, timeout_s=DEADLINE_S))
    await probed.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not is_alive(server.pid)


async def test_a_cancellation_during_stop_waits_until_the_server_has_ended(tmp_path: Path) -> None:
    async def trapped(pid: int) -> bool:
        return "trapped" in (tmp_path / "server.log").read_text()

    server = shell('trap "echo asked" TERM; echo trapped; while :; do sleep 0.05; done', tmp_path)
    await server.start(trapped, timeout_s=DEADLINE_S)
    stop = asyncio.create_task(server.stop(timeout_s=0.5))
    await asyncio.sleep(0)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert not is_alive(server.pid)


async def test_stop_does_nothing_after_the_end_or_without_a_start(tmp_path: Path) -> None:
    server = shell("exec sleep 60", tmp_path)
    await server.stop()
    await server.start(always_ready, timeout_s=DEADLINE_S)
    os.kill(server.pid, signal.SIGKILL)
    assert "Server was ended by SIGKILL" in (await server.ended()).message
    await server.stop()
    await server.stop()


async def test_run_returns_the_output(tmp_path: Path) -> None:
    assert await shell("cat; echo two >&2", tmp_path).run(b"one\n", timeout_s=DEADLINE_S) == "one\ntwo\n"


async def test_run_raises_when_the_command_fails(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="exit code 4: disk full"):
        await shell("echo disk full; exit 4", tmp_path).run(timeout_s=DEADLINE_S)


async def test_run_stops_a_command_at_the_timeout(tmp_path: Path) -> None:
    slow = shell("exec sleep 60", tmp_path)
    with pytest.raises(ServerStartError, match=r"did not end within 0\.2 seconds"):
        await slow.run(timeout_s=0.2)
    assert not is_alive(slow.pid)


async def test_postgres_variables_of_the_shell_do_not_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    assert "PGPORT" not in await shell("env", tmp_path).run(timeout_s=DEADLINE_S)


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    server = shell("exec sleep 60", tmp_path)
    await server.start(always_ready, timeout_s=DEADLINE_S)
    assert os.getpgid(server.pid) == server.pid
    await server.stop()


@pytest.mark.parametrize("run", ["asyncio.run(main())", "import uvloop; uvloop.run(main())"])
def test_a_server_dies_with_a_parent_that_is_killed(tmp_path: Path, run: str) -> None:
    pid = pid_of_child_after_killing_parent(run, [str(tmp_path / "log"), "sleep", "60"])
    wait_until_gone(pid)


def test_a_server_in_a_user_namespace_dies_with_its_parent(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0
    ):
        pytest.skip("user namespaces are not available")
    pid = pid_of_child_after_killing_parent("asyncio.run(main())", [str(tmp_path / "log"), *command, "sleep", "60"])
    wait_until_gone(pid)


def test_a_watched_child_dies_with_its_parent_without_kernel_support() -> None:
    wait_until_gone(pid_of_child_after_killing_parent("asyncio.run(watched())", []))


async def test_a_dismissed_watch_does_not_kill_the_child() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    async with ParentWatch(child.pid, signal.SIGKILL):
        pass
    assert is_alive(child.pid)
    child.kill()
    await child.wait()
