"""Child processes: each in its own process group, stopped by pid in any case, and ended when this process dies."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from cplane.dev.parent import die_with_parent

STOP_TIMEOUT_S = 10.0
ORDER_TIMEOUT_S = 600.0


class Unavailable(Exception):
    """A system cannot take part; the message says why."""


class Child:
    """A running child."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    def last_line(self) -> str:
        """Return the last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "there is no output"

    def check(self) -> None:
        """Raise Unavailable if it has ended."""
        if self.process.returncode is not None:
            raise Unavailable(f"it ended with exit code {self.process.returncode}: {self.last_line()}")


@asynccontextmanager
async def child(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, piped: bool = False
) -> AsyncGenerator[Child]:
    """Run a command, and stop it at the end. Its output goes to `log`; if `piped`, its stdin and stdout are pipes."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**_clean_environment(), **env},
            cwd=cwd,
            stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if piped else output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM, None),
        )
    try:
        yield Child(process, log)
    finally:
        await asyncio.shield(asyncio.ensure_future(_stop(process)))


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        if process.returncode is None:
            os.kill(process.pid, signal.SIGTERM)  # terminate() would poll the exit code, which asyncio would then miss
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the group contains only this child and what it forked
    await process.wait()


class Producer:
    """A producer process that accepts orders."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def ready(self) -> None:
        """Wait until it accepts orders.

        Raises:
            Unavailable: the system cannot take part.
        """
        reply = await self._reply()
        if "unavailable" in reply:
            raise Unavailable(str(reply["unavailable"]))

    async def order(self, do: str, job: str, first: int, count: int, **more: float) -> float:
        """Send an order, and return the seconds that it took."""
        assert self._child.process.stdin is not None
        order = {"do": do, "job": job, "first": first, "count": count, **more}
        self._child.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._child.process.stdin.drain()
        return float((await self._reply())["took_s"])

    async def _reply(self) -> dict[str, Any]:
        assert self._child.process.stdout is not None
        async with asyncio.timeout(ORDER_TIMEOUT_S):
            line = await self._child.process.stdout.readline()
        if not line:
            await self._child.process.wait()
            raise Unavailable(f"its producer ended: {self._child.last_line()}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _clean_environment() -> dict[str, str]:
    """Return our environment without variables that would configure a system by accident."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CPLANE_", "BENCH_", "PYTHON"))}
