"""The systems that are measured: how to start the worker and the producer of each, and its capabilities.

Every worker is started with the command line of its system, one service process per worker of a scenario.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
ENVIRONMENTS = ROOT / ".cache" / "benchmarks"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system. `{python}`, `{concurrency}` and `{name}` in `command` are replaced for each worker."""

    name: str
    folder: str
    """Folder below benchmarks/peers with its jobs, its client and its pinned versions."""
    command: tuple[str, ...]
    noop_concurrency: int
    """The concurrency that suits no-op jobs."""
    sleeps: tuple[int, ...] = (32, 256)
    """The concurrencies at which it can run sleeping jobs."""
    database: bool = False
    """Whether it stores jobs in Postgres."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is cplane, which runs in the environment of the benchmark."""
        return self.folder == "cplane"

    @property
    def python(self) -> str:
        """The interpreter of its environment."""
        return sys.executable if self.ours else str(ENVIRONMENTS / self.folder / "bin" / "python")

    @property
    def files(self) -> Path:
        """The folder of its files."""
        return BENCHMARKS / "peers" / self.folder

    def worker_command(self, concurrency: int, name: str) -> list[str]:
        """Return the command that starts one worker."""
        return [part.format(python=self.python, concurrency=concurrency, name=name) for part in self.command]

    def environment(self, concurrency: int) -> dict[str, str]:
        """Return the environment variables of its processes, without the addresses of the servers."""
        return {
            "PYTHONPATH": f"{ROOT}:{self.files}",
            "PYTHONDONTWRITEBYTECODE": "",
            "BENCH_CONCURRENCY": str(concurrency),
            **{name: value.format(concurrency=concurrency) for name, value in self.env.items()},
        }


def _cplane(kind: str, *, database: bool, note: str) -> System:
    return System(
        name=f"cplane {kind}",
        folder="cplane",
        command=("{python}", "-m", "arq", "cplane.worker.Settings"),
        noop_concurrency=512,
        database=database,
        env={"CPLANE_IMPORTS": kind, "CPLANE_QUEUES": "default:{concurrency}", "CPLANE_LOG_LEVEL": "warning"},
        note=note,
    )


def _celery(name: str, pool: str, concurrency: int, *, sleeps: tuple[int, ...], note: str) -> System:
    options = ("--pool", pool, "--concurrency", "{concurrency}", "--hostname", "{name}@bench", "--loglevel", "WARNING")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    return System(
        name=name,
        folder="celery",
        command=("{python}", "-m", "celery", "-A", "app", "worker", *options, *quiet),
        noop_concurrency=concurrency,
        sleeps=sleeps,
        note=note,
    )


TRANSIENT = _cplane("transient", database=False, note="no row in Postgres")
RECORDED = _cplane("recorded", database=True, note="a committed row for every job and every attempt")

SYSTEMS = (
    TRANSIENT,
    RECORDED,
    System(
        name="arq",
        folder="arq",
        command=("{python}", "-m", "arq", "app.Settings", "--custom-log-dict", "app.LOGGING"),
        noop_concurrency=256,
        note="polls every 10 ms",
    ),
    System(name="saq", folder="saq", command=("{python}", "-m", "saq", "app.settings"), noop_concurrency=16),
    System(
        name="streaq",
        folder="streaq",
        command=("{python}", "-m", "streaq", "run", "app:worker"),
        noop_concurrency=128,
    ),
    System(
        name="taskiq",
        folder="taskiq",
        command=(
            "{python}", "-m", "taskiq", "worker", "app:broker", "--workers", "1", "--log-level", "WARNING", "--no-parse",
            "--max-async-tasks", "{concurrency}", "--max-prefetch", "{concurrency}", "--ack-type", "when_received",
        ),
        noop_concurrency=64,
        note="stream broker",
    ),
    _celery("celery", "prefork", 2, sleeps=(), note="prefork, two processes a worker"),
    _celery("celery-threads", "threads", 16, sleeps=(32, 256), note="threads"),
    System(
        name="dramatiq",
        folder="dramatiq",
        command=("{python}", "-m", "dramatiq", "app", "--processes", "1", "--threads", "{concurrency}"),
        noop_concurrency=16,
        env={"dramatiq_queue_prefetch": "1000"},
        note="threads",
    ),
    System(
        name="procrastinate",
        folder="procrastinate",
        command=(
            "{python}", "-m", "procrastinate", "--app", "app.app", "--log-level", "warning",
            "worker", "--concurrency", "{concurrency}",
        ),
        noop_concurrency=32,
        database=True,
    ),
)  # fmt: skip

OURS = frozenset(system.name for system in SYSTEMS if system.ours)
ON_POSTGRES = frozenset(system.name for system in SYSTEMS if system.database and not system.ours)
ON_REDIS = frozenset(system.name for system in SYSTEMS if not system.database and not system.ours)
