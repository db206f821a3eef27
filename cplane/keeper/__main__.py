"""`python -m cplane.keeper [--processes N] [--max-jobs N] [--max-memory-mb N] -- PROGRAM …`: run worker processes."""

import argparse
import asyncio
import sys

from cplane.keeper.channel import Limits
from cplane.keeper.supervisor import Supervisor


def main() -> int:
    """Run worker processes until they end, or until SIGTERM. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="cplane.keeper", description="Run worker processes, and clean up after them.")
    parser.add_argument("--processes", type=int, default=1, help="How many worker processes to run.")
    parser.add_argument("--max-jobs", type=int, default=0, help="Replace a process after so many jobs.")
    parser.add_argument("--max-memory-mb", type=int, default=0, help="Replace a process that uses more MiB.")
    parser.add_argument("command", nargs="+", help="The program of a worker process, and its arguments.")
    given = parser.parse_args()
    supervisor = Supervisor(given.command, given.processes, Limits(given.max_jobs, given.max_memory_mb))
    return asyncio.run(supervisor.run())


if __name__ == "__main__":
    sys.exit(main())
