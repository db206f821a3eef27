"""The cluster: two `cplane worker`, used for all offenders, their servers and their web pages."""

import json
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cplane import ControlPlane, CplaneSettings, Handle
from tests.keepers import Keeper, keeper
from tests.neighbours.innocents import Call
from tests.pages import ALLOCATING, LINKS, OPENING, SPINNING, Response, bomb, hostile, page, serve
from tests.programs import environment

ROOT = Path(__file__).parents[2]
DRAIN_S = 0.5
LEASE_S = 10.0
MAX_MEMORY_MB = 2048
PAGE_MEMORY_MB = 400
QUEUES = {"default": 20, "browser": 3, "probe": 5, "tick": 1}
"""Of each worker. There is one page more than the queue `browser` can use, for probes."""

POPUPS = 1000
PAGES: Mapping[str, str] = {
    "/page": "<title>Here</title><h1>News</h1><p>at <b>last</b></p>",
    "/elements": LINKS % 50_000,
    "/allocating": ALLOCATING,
    "/spinning": SPINNING,
    "/popups": OPENING % POPUPS,
    "/hostile": hostile(140_000),
    "/hostile-soon": hostile(),
}


def respond(path: str) -> Response:
    """Return the page of a path."""
    if path == "/bomb":
        return bomb(1200)
    return page(PAGES[path]) if path in PAGES else Response(b"<title>Nothing</title>", "404 Not Found")


@dataclass(frozen=True)
class Process:
    """A worker process, and the time in which it claimed jobs."""

    name: str
    pid: int
    since: float
    until: float
    died: bool
    is_quarantine: bool = False
    """Whether it runs jobs alone that were aboard two crashes, and serves no queue."""


@dataclass
class Cluster:
    """Two workers, the control plane, and the URL of the pages."""

    settings: CplaneSettings
    plane: ControlPlane
    url: str
    folder: Path
    quick: bool = False
    keepers: list[Keeper] = field(default_factory=list[Keeper])

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker."""
        return environment(
            self.settings,
            CPLANE_IMPORTS="tests.neighbours.innocents,tests.neighbours.offenders",
            CPLANE_QUEUES=",".join(f"{queue}:{number}" for queue, number in QUEUES.items()),
            CPLANE_BROWSER_PAGES=str(QUEUES["browser"] + 1),
            CPLANE_BROWSER_PAGE_MEMORY_MB=str(PAGE_MEMORY_MB),
            CPLANE_LEASE_S=str(LEASE_S),
            CPLANE_DRAIN_S=str(DRAIN_S),
            CPLANE_LOG_FORMAT="json",
            PYTHONPATH=str(ROOT),
            NEIGHBOURS_QUICK="1" if self.quick else "",
        )

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[Keeper]:
        """Run one more worker."""
        async with keeper("--max-memory-mb", str(MAX_MEMORY_MB), env=self.environment, cwd=ROOT) as running:
            yield running

    async def submit(self, calls: Sequence[Call], *, queue: str | None = None) -> list[Handle[Any]]:
        """Submit calls, in their order."""
        return [await job.using(queue=queue).submit(**given) for job, given in calls]

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event, of all workers."""
        lines = [line for each in self.keepers for line in each.lines if f'"{event}"' in line and line.startswith("{")]
        return [read for line in lines if (read := json.loads(line)).get("event") == event]

    @staticmethod
    def pid_of(worker: str) -> int:
        """Return the process of a worker by its name."""
        return int(worker.split(":")[1])

    def processes(self) -> list[Process]:
        """Return the worker processes that have run until now."""
        died = {int(line["pid"]): read_time(line["timestamp"]) for line in self.events("worker_died")}
        ended = {self.pid_of(line["worker"]): read_time(line["timestamp"]) for line in self.events("worker_stopped")}
        retired = {int(line["pid"]): read_time(line["timestamp"]) for line in self.events("worker_retires")}
        found: list[Process] = []
        for line in self.events("worker_started"):
            pid = self.pid_of(line["worker"])
            alone = any(queue not in QUEUES for queue in line["queues"])
            ends = [times[pid] for times in (died, ended, retired) if pid in times]
            since = read_time(line["timestamp"])
            found.append(Process(line["worker"], pid, since, min(ends, default=float("inf")), pid in died, alone))
        return found

    def blocked(self) -> int:
        """Return how often a keeper found its worker blocked."""
        return len(self.events("worker_blocked"))


def read_time(text: str) -> float:
    """Return a time of a log line, in seconds of the system's clock."""
    return datetime.fromisoformat(text).timestamp()


@asynccontextmanager
async def open_cluster(settings: CplaneSettings, *, quick: bool = False, workers: int = 2) -> AsyncGenerator[Cluster]:
    """Start the web server and the workers; end them."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neighbours-")))
        plane = await stack.enter_async_context(ControlPlane(settings))
        url = await stack.enter_async_context(serve(respond))
        cluster = Cluster(settings, plane, url, folder, quick)
        for _ in range(workers):
            cluster.keepers.append(await stack.enter_async_context(cluster.worker()))
        yield cluster
