"""A closed-loop HTTP load generator in a separate process: keep-alive connections, uvloop, and minimal parsing.

`python -m benchmarks.suite.http_load PLAN` prints requests per second, percentiles and the count of each status. Each
connection sends its next request after the previous response. PLAN is JSON, for example:

{"port": 8000, "method": "POST", "path": "/", "body": "{}", "connections": 32, "requests": 1000, "warm": 100}
"""

import asyncio
import json
import sys
import time
from functools import partial
from typing import Any, cast

import uvloop

HOST = "127.0.0.1"


class Plan:
    """The state that all connections share: the number of requests still to send, and the results of the others."""

    def __init__(self, options: dict[str, Any]) -> None:
        body = str(options.get("body", "")).encode()
        head = (
            f"{options['method']} {options['path']} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        )
        self.request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self.remaining = int(options["requests"])
        self.took_ms: list[float] = []
        self.statuses: dict[str, int] = {}
        self.broken = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, plan: Plan, done: asyncio.Future[None]) -> None:
        self._plan = plan
        self._done = done
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._plan.took_ms.append((time.perf_counter() - self._sent_at) * 1000)
        status = head[9:12].decode()
        self._plan.statuses[status] = self._plan.statuses.get(status, 0) + 1
        self._received = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the signature of asyncio
        if not self._done.done():
            self._plan.broken += 1
            self._done.set_result(None)

    def _next(self) -> None:
        if self._plan.remaining <= 0:
            self._done.set_result(None)
            self._transport.close()
            return
        self._plan.remaining -= 1
        self._sent_at = time.perf_counter()
        self._transport.write(self._plan.request)


def _length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("the server sends no content-length; this generator reads no chunks")
    return int(head[at + 17 :].partition(b"\r\n")[0])


async def load(options: dict[str, Any]) -> dict[str, object]:
    """Run a plan after a smaller one as a warm-up, and return the measurements."""
    if warm := options.get("warm"):
        await load({**options, "requests": warm, "warm": 0})
    plan = Plan(options)
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(int(options["connections"]))]
    began = time.perf_counter()
    for end in ends:
        await loop.create_connection(partial(Connection, plan, end), HOST, int(options["port"]))
    await asyncio.gather(*ends)
    took_s = time.perf_counter() - began
    ordered = sorted(plan.took_ms)
    return {
        "per_s": len(ordered) / took_s,
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[int(len(ordered) * 0.99)],
        "statuses": plan.statuses,
        "broken": plan.broken,
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(load(json.loads(sys.argv[1])))))
