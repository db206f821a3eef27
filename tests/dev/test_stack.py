"""The stack of real servers: its data, its lock, its announcement, and recovery after a kill."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from cplane.dev import DevStack, binaries, identity
from cplane.dev.lock import FolderLock
from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.dev.sockets import SocketFolder
from cplane.errors import ServerStartError
from cplane.redis.connection import connect
from cplane.runtime.stack_file import is_ours

DEADLINE_S = 10.0

PARENT = """
import asyncio, sys
from pathlib import Path
from cplane.dev import DevStack

async def main():
    async with DevStack(Path(sys.argv[1]), durable=False):
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def query(database_url: str, statement: str) -> object:
    connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
    connection = await connect(database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def command(redis_url: str, *words: str) -> Any:
    client: Any = Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
    async with client:
        return await client.execute_command(*words)


async def server_pids(root: Path, redis_url: str) -> tuple[int, int]:
    postgres = (root / ".cplane/postgres/postmaster.pid").read_text().splitlines()[0]
    return int(postgres), (await command(redis_url, "INFO", "server"))["process_id"]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def started_and_stopped(root: Path) -> None:
    async with DevStack(root, durable=False):
        pass


def announcement(root: Path) -> dict[str, object]:
    return cast("dict[str, object]", json.loads((root / ".cplane/stack.json").read_text()))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a stack ran before, so that the next one there starts in well under 0.1 s."""
    root = tmp_path_factory.mktemp("used")
    asyncio.run(started_and_stopped(root))
    return root


async def test_both_servers_respond_and_end_with_the_stack(tmp_path: Path) -> None:
    async with DevStack(tmp_path) as stack:
        assert await query(stack.database_url, "SELECT current_database()") == "cplane"
        assert await query(stack.database_url, "SHOW max_connections") == "200"
        assert await query(stack.database_url, "SHOW fsync") == "on"
        assert await command(stack.redis_url, "PING")
        assert b"noeviction" in await command(stack.redis_url, "CONFIG", "GET", "maxmemory-policy")
        pids = await server_pids(tmp_path, stack.redis_url)
        sockets = Path(stack.redis_url.removeprefix("unix://").partition("?")[0]).parent
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not any(is_alive(pid) for pid in pids)
    assert not sockets.exists()
    assert (tmp_path / ".cplane/.gitignore").read_text() == "*\n"


async def test_a_restart_keeps_the_data_and_the_addresses(used: Path) -> None:
    async with DevStack(used) as first:
        await query(first.database_url, "CREATE TABLE kept AS SELECT 42 AS number")
        await command(first.redis_url, "SET", "kept", "42")
        addresses = (first.database_url, first.redis_url)
    async with DevStack(used) as second:
        assert (second.database_url, second.redis_url) == addresses
        assert await query(second.database_url, "SELECT number FROM kept") == 42
        assert await command(second.redis_url, "GET", "kept") == b"42"


async def test_the_announcement_exists_while_the_stack_runs(used: Path) -> None:
    async with DevStack(used, durable=False) as stack:
        assert announcement(used) == {
            "pid": os.getpid(),
            "database_url": stack.database_url,
            "redis_url": stack.redis_url,
            "artifacts_url": (used / ".cplane/artifacts").as_uri(),
            "api_url": None,
            "imports": None,
        }
        assert is_ours(used / ".cplane")
        assert is_ours(used / ".cplane/stack.json")
        stack.announce("http://127.0.0.1:8000", ["app", "more.jobs"])
        assert announcement(used)["api_url"] == "http://127.0.0.1:8000"
        assert announcement(used)["imports"] == "app,more.jobs"
    assert not (used / ".cplane/stack.json").exists()


async def test_a_second_stack_in_the_folder_fails_immediately_and_harms_nothing(used: Path) -> None:
    async with DevStack(used, durable=False) as first:
        with pytest.raises(ServerStartError, match=rf"another stack runs in .* \(pid {os.getpid()}\)") as caught:
            async with DevStack(used, durable=False):
                pass
        assert caught.value.hint
        assert announcement(used)["pid"] == os.getpid()
        assert await query(first.database_url, "SELECT 1") == 1
        assert await command(first.redis_url, "PING")


async def test_stacks_in_two_folders_run_concurrently(used: Path, tmp_path: Path) -> None:
    async with (
        DevStack(used, durable=False) as one,
        DevStack(tmp_path, durable=False) as two,
    ):
        assert one.redis_url != two.redis_url
        assert await query(one.database_url, "SELECT 1") == await query(two.database_url, "SELECT 1")


async def test_a_killed_parent_leaves_no_server_and_the_next_start_works(used: Path) -> None:
    parent = await asyncio.create_subprocess_exec(*(sys.executable, "-c", PARENT, str(used)), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    pids = await server_pids(used, str(announcement(used)["redis_url"]))
    parent.kill()
    await parent.communicate()
    async with DevStack(used, durable=False) as stack:
        assert announcement(used)["pid"] == os.getpid()
        assert await query(stack.database_url, "SELECT 1") == 1
    for pid in pids:
        await until_gone(pid)


async def test_a_killed_postgres_is_detected_and_the_exit_does_not_hang(used: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), DevStack(used, durable=False) as stack:
        os.kill((await server_pids(used, stack.redis_url))[0], signal.SIGKILL)
        assert "Postgres was ended by SIGKILL" in (await stack.ended()).message


async def test_a_killed_redis_is_detected_and_the_exit_does_not_hang(used: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), DevStack(used, durable=False) as stack:
        os.kill((await server_pids(used, stack.redis_url))[1], signal.SIGKILL)
        assert "Redis was ended by SIGKILL" in (await stack.ended()).message


async def test_leftovers_of_a_killed_stack_do_not_prevent_a_start(used: Path) -> None:
    folder = used / ".cplane"
    (folder / "postgres/postmaster.pid").write_text(f"{os.getppid()}\n{folder / 'postgres'}\n")
    (folder / "stack.json").write_text("{")
    (folder / "postgres.new").mkdir()
    async with DevStack(used, durable=False) as stack:
        assert await query(stack.database_url, "SELECT 1") == 1


@pytest.mark.parametrize(("folder", "moments_ms"), [("tmp_path", (0, 30, 120, 300)), ("used", range(0, 80, 8))])
async def test_a_cancellation_at_any_moment_of_the_start_leaks_nothing(
    request: pytest.FixtureRequest, folder: str, moments_ms: Sequence[int]
) -> None:
    root = cast("Path", request.getfixturevalue(folder))
    for moment_ms in moments_ms:
        start = asyncio.create_task(started_and_stopped(root))
        await asyncio.wait([start], timeout=moment_ms / 1000)
        start.cancel()
        with suppress(asyncio.CancelledError):
            await start
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not (root / ".cplane/stack.json").exists()
        async with FolderLock(root / ".cplane/lock"):  # a leaked server would hold it
            pass
    async with DevStack(root, durable=False) as stack:
        assert await query(stack.database_url, "SELECT 1") == 1


async def test_when_one_server_cannot_start_the_other_is_stopped(tmp_path: Path) -> None:
    manifest = tmp_path / ".cplane/redis/appendonlydir/appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("broken")
    with pytest.raises(ServerStartError, match="Redis ended with exit code 1"):
        async with DevStack(tmp_path):
            pass
    async with FolderLock(tmp_path / ".cplane/lock"):
        pass
    assert not (tmp_path / ".cplane/stack.json").exists()


async def test_data_of_another_major_version_is_rejected_with_a_hint(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerStartError, match="was created by Postgres 9, but the installed version is") as caught:
        async with EmbeddedPostgres(data, tmp_path):
            pass
    assert "run Postgres 9 yourself" in str(caught.value.hint)


async def test_a_folder_that_is_not_postgres_data_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(ServerStartError, match="is not a Postgres data folder"):
        async with EmbeddedPostgres(tmp_path / "postgres", tmp_path):
            pass


async def test_a_too_long_socket_path_is_rejected_with_a_hint(tmp_path: Path) -> None:
    sockets = tmp_path / ("x" * 100)
    for server in (EmbeddedPostgres(tmp_path / "postgres", sockets), EmbeddedRedis(tmp_path / "redis", sockets)):
        with pytest.raises(ServerStartError, match="longer than 103 bytes") as caught:
            async with server:
                pass
        assert caught.value.hint


@pytest.mark.parametrize("allocator", [None, "libanl.so.1"])
async def test_redis_loads_the_given_allocator(tmp_path: Path, allocator: str | None) -> None:
    """Any library is enough for the test: libanl is part of the C library, and Redis does not load it otherwise."""
    with SocketFolder(tmp_path) as sockets:
        async with (
            EmbeddedRedis(tmp_path / "redis", sockets, allocator=allocator) as redis,
            connect(SecretStr(redis.url)) as client,
        ):
            server: dict[str, int] = await client.info("server")  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
            loaded = Path(f"/proc/{server['process_id']}/maps").read_text()
    assert ("/libanl" in loaded) == (allocator is not None)


def test_sockets_avoid_a_temporary_folder_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with SocketFolder(tmp_path) as folder:
        assert folder.parent == Path("/tmp")
    assert not folder.exists()


def test_sockets_do_not_use_a_folder_of_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # tmp_path is too long for sockets
        monkeypatch.setattr(tempfile, "tempdir", base)
        with SocketFolder(tmp_path) as expected:
            assert expected.parent == Path(base)
        expected.symlink_to(tmp_path)
        with SocketFolder(tmp_path) as folder:
            assert folder != expected
            assert folder.stat().st_mode & 0o777 == 0o700
        assert expected.is_symlink()


async def test_a_missing_binary_raises_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> tuple[Path, ...]:
        return ()

    for lookup in ("_in_wheel", "_on_path", "_debian"):
        monkeypatch.setattr(binaries, lookup, nothing)
    with pytest.raises(ServerStartError, match=r"there is no (Postgres|Valkey or Redis) on this machine") as caught:
        async with DevStack(tmp_path):
            pass
    assert caught.value.hint == "pip install 'cplane[dev]'"


async def test_without_a_user_that_can_run_postgres_the_error_has_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unusable() -> tuple[identity.Identity, ...]:
        return (identity.Identity(prefix=("false",)),)

    monkeypatch.setattr(identity, "_identities", unusable)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ServerStartError, match="Postgres refuses to run as root") as caught:
        async with DevStack(tmp_path):
            pass
    assert "CPLANE_DATABASE_URL" in str(caught.value.hint)
