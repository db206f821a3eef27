"""A process that has imported everything, and forks others on request in milliseconds."""

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class ForkingProcess:
    """Starts the process, and ends it by closing its stdin.

    It prints a number once everything is imported, and then the id of a new process for each line of its stdin.

    Args:
        command: what starts it.
        environment: its whole environment.
        folder: where it runs; None: here.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> None:
        self._command, self._environment, self._folder = command, environment, folder
        self._requests = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._read()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._process.communicate()

    def request(self, what: Mapping[str, object]) -> int:
        """Fork a process, and return its id."""
        with self._requests:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the forking process ended with exit code {self._process.wait()}")
        return int(line)
