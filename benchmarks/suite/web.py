"""HTTP servers under test, and the process of the load generator."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.processes import Child, Unavailable, child
from benchmarks.suite.systems import ROOT

READY_TIMEOUT_S = 30.0
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Load:
    """The measurements of the load generator."""

    per_s: float
    p50_ms: float
    p99_ms: float
    statuses: Mapping[str, int]
    broken: int

    @property
    def accepted(self) -> int:
        """Number of responses with status 202."""
        return self.statuses.get("202", 0)

    @property
    def other_outcomes(self) -> str:
        """The other outcomes as text; empty if there are none."""
        others = {status: count for status, count in self.statuses.items() if status not in {"200", "202"}}
        return ", ".join(f"{count} × {status}" for status, count in others.items()) + (
            f" {self.broken} broken connections" if self.broken else ""
        )


@asynccontextmanager
async def web_server(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> AsyncGenerator[int]:
    """Run a server on a free port of loopback, which replaces `{port}` in the command. Yields the port."""
    port = _free_port()
    filled = [part.format(port=port) for part in command]
    async with child(filled, env=env, cwd=cwd, log=log) as server:
        await _until_listening(server, port)
        yield port


async def load(folder: Path, plan: Mapping[str, object]) -> Load:
    """Run the load generator."""
    command = [sys.executable, "-m", "benchmarks.suite.http_load", json.dumps(plan)]
    log = folder / "load.log"
    async with child(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, log=log, piped=True) as generator:
        assert generator.process.stdout is not None
        output = await generator.process.stdout.read()
        await generator.process.wait()
        if not output:
            raise Unavailable(f"the load generator ended: {generator.last_line()}")
    measured: dict[str, Any] = json.loads(output)
    return Load(**measured)


async def _until_listening(server: Child, port: int) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            server.check()
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
