"""How a program becomes a keeper: the same program runs again as its worker process."""

import os
import sys

from cplane.keeper.channel import VARIABLE

SUPPORTED = hasattr(os, "fork") and sys.platform != "emscripten"


def is_kept() -> bool:
    """Return whether a keeper started this process."""
    return VARIABLE in os.environ


def become_keeper(*, processes: int = 1, max_jobs: int = 0, max_memory_mb: int = 0) -> None:
    """Replace this process by a keeper that runs this program as its worker processes; it does not return.

    The process keeps its id, so its service manager sees one process. The program starts anew: call this first.

    Args:
        processes: how many worker processes to run.
        max_jobs: a process is replaced after so many jobs; 0: never.
        max_memory_mb: a process is replaced that uses more MiB; 0: never.
    """
    options = ["--processes", str(processes), "--max-jobs", str(max_jobs), "--max-memory-mb", str(max_memory_mb)]
    sys.stdout.flush()
    sys.stderr.flush()
    program = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cplane.keeper", *options, "--", *program])  # noqa: S606
