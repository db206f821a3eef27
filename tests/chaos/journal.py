"""The journal of a scenario: one line of JSON per event, written by the driver, the workers and the jobs.

A line is one append to a shared file: lines never mix, and a kill loses no written line. A reader may see the first
half of the last line while it is written; it leaves it for the next time. Times are those of the machine's monotonic
clock, which all processes share and which clock steps do not change.
"""

import json
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "CHAOS_JOURNAL"

TRANSIENT = "transient "
"""Prefix of the events of transient jobs."""


class Journal:
    """Appends events to the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **fields: object) -> None:
        line = {"event": event, "at": time.monotonic(), "pid": os.getpid()} | fields
        os.write(self._fd, json.dumps(line, default=str).encode() + b"\n")

    def lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open() as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)

    def close(self) -> None:
        os.close(self._fd)


@cache
def here() -> Journal:
    """Return the journal of this worker process."""
    return Journal(Path(os.environ[VARIABLE]))
